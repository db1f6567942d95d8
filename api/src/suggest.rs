//! "Did you mean …?" for keys and names that people type.

/// The known name nearest to `given`, when it is near enough to be a typing error.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = given.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(2))
        .map(|(_, name)| name)
}

/// Sorts candidates, nearest first.
pub fn sort(given: &str, names: &mut [String]) {
    let lower = given.to_lowercase();
    names.sort_by_cached_key(|name| strsim::damerau_levenshtein(&lower, &name.to_lowercase()));
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["timeout", "memory", "concurrency", "minInstances"];
        assert_eq!(nearest("timout", known), Some("timeout"));
        assert_eq!(nearest("min_instances", known), Some("minInstances"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
