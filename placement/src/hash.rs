//! Hashes that never change: of names, of callers, and of values derived from them. Written out
//! here, so that no new release of a library or of the compiler can send every function of a fleet
//! to another VM, and so that gateways of different versions agree. Not for hash tables, and not
//! resistant to attackers: the owner who chooses a function's name also pays for its placement.
//!
//! [`of_name`] is FNV-1a over the bytes, which separates short names, followed by [`mix`], which
//! spreads the low bits over all 64. Both are checked penalty their published test vectors.

/// FNV's offset basis and prime for 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
/// 2⁶⁴ divided by the golden ratio: the step between the states of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a function's name or a VM's id.
pub fn of_name(name: &str) -> u64 {
    of_bytes(name.as_bytes())
}

/// The hash of a value that identifies a caller.
pub fn of_bytes(bytes: &[u8]) -> u64 {
    mix(fnv1a(bytes))
}

/// The `n`th number derived from `hash`, from 0.
pub fn nth(hash: u64, n: u64) -> u64 {
    mix(hash.wrapping_add(GOLDEN.wrapping_mul(n.wrapping_add(1))))
}

/// Maps consecutive numbers evenly onto all 64 bits: of any run of them, each interval gets as many
/// as its size says, give or take two (the additive sequence of the golden ratio).
pub fn spread(n: u64) -> u64 {
    n.wrapping_mul(GOLDEN)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(FNV_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// The finaliser of SplitMix64: a bijection in which each bit of the input flips half of the
/// output's.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn splitmix64_is_the_published_one() {
        let first_of = |seed| [nth(seed, 0), nth(seed, 1), nth(seed, 2)];
        assert_eq!(
            first_of(1_234_567),
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn names_keep_their_hashes() {
        assert_eq!(of_name("checkout"), mix(fnv1a(b"checkout")));
        assert_ne!(of_name("Twin"), of_name("twin"));
    }
}
