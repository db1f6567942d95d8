//! The cached token of one region, and its renewal. Knows nothing of AWS; `client.rs` passes how one
//! is fetched.

use super::{EcrError, Token};
use base64::{Engine, prelude::BASE64_STANDARD};
use epsilon_api::{chain::Chain, redacted::Secret};
use jiff::Timestamp;
use std::time::Duration;
use tokio::{sync::Mutex, time::Instant};

/// Lower limit of a token's life, whatever its answer says: one that has expired on arrival (of a
/// fake, or because this machine's clock is wrong) would be fetched again for every image. The
/// registry refuses a token that has really expired, and then it is renewed.
const MIN_LIFE: Duration = Duration::from_secs(600);
/// The life of AWS's tokens.
const MAX_LIFE: Duration = Duration::from_secs(12 * 3600);
/// Pause between two renewals that fail, while the cached token is used on.
const RENEW_PAUSE: Duration = Duration::from_secs(30);

/// A token as it was fetched.
pub(super) struct Fresh {
    pub(super) token: Token,
    pub(super) life: Duration,
}

/// The cached token. The lock is held during a fetch: all others wait for its result.
#[derive(Debug, Default)]
pub(super) struct TokenCache(Mutex<Option<CachedToken>>);

#[derive(Debug)]
struct CachedToken {
    token: Token,
    renew_at: Instant,
    expires_at: Instant,
}

impl TokenCache {
    /// The cached token, or one from `fetch`, which is only polled when it is needed; its own
    /// timeouts bound the wait.
    pub(super) async fn get(
        &self,
        fetch: impl Future<Output = Result<Fresh, EcrError>>,
    ) -> Result<Token, EcrError> {
        let mut cached = self.0.lock().await;
        let now = Instant::now();
        if let Some(cached) = cached.as_ref().filter(|cached| now < cached.renew_at) {
            return Ok(cached.token.clone());
        }
        match fetch.await {
            Ok(Fresh { token, life }) => {
                let now = Instant::now();
                let renew_at = now + life / 2;
                let expires_at = now + life;
                *cached = Some(CachedToken { token: token.clone(), renew_at, expires_at });
                Ok(token)
            }
            Err(err) => match cached.as_mut().filter(|cached| now < cached.expires_at) {
                Some(cached) => {
                    tracing::warn!(error = %Chain(&err), "New registry token could not be fetched; using the cached one on.");
                    cached.renew_at = Instant::now() + RENEW_PAUSE;
                    Ok(cached.token.clone())
                }
                None => Err(err),
            },
        }
    }

    /// Drops this token, unless it was replaced already.
    pub(super) async fn forget(&self, refused: &Token) {
        let mut cached = self.0.lock().await;
        if cached.as_ref().is_some_and(|cached| cached.token == *refused) {
            *cached = None;
        }
    }
}

/// How long a token with this expiry may be used from now on.
pub(super) fn life(expires_at: Option<Timestamp>, now: Timestamp) -> Duration {
    let reported = expires_at.map_or(MAX_LIFE, |at| {
        Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
    });
    reported.clamp(MIN_LIFE, MAX_LIFE)
}

/// The password in base64 of `AWS:password`.
pub(super) fn read(text: &str) -> Option<Token> {
    let plain = BASE64_STANDARD.decode(text).ok()?;
    let plain = String::from_utf8(plain).ok()?;
    let (user, password) = plain.split_once(':')?;
    (user == super::USER && !password.is_empty()).then(|| Secret::new(password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::time::advance;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Provides `token-1`, `token-2`… of this life, slowly; fails when scripted to.
    #[derive(Clone, Default)]
    struct Source(Arc<AtomicUsize>, Arc<AtomicUsize>);

    impl Source {
        async fn fetch(&self, life: Duration) -> Result<Fresh, EcrError> {
            let number = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.1.load(Ordering::SeqCst) > 0 {
                return Err(EcrError::Failed {
                    action: "GetAuthorizationToken",
                    source: "down".into(),
                });
            }
            Ok(Fresh { token: Secret::new(format!("token-{number}")), life })
        }

        fn fails(&self, fails: bool) {
            self.1.store(usize::from(fails), Ordering::SeqCst);
        }

        fn requests(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    async fn get(cache: &TokenCache, source: &Source, life: Duration) -> Result<String, EcrError> {
        cache.get(source.fetch(life)).await.map(|token| token.reveal().clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_half_its_life() {
        let cache = TokenCache::default();
        let source = Source::default();
        assert_eq!(get(&cache, &source, 12 * HOUR).await.unwrap(), "token-1");
        advance(6 * HOUR - Duration::from_secs(1)).await;
        assert_eq!(get(&cache, &source, 12 * HOUR).await.unwrap(), "token-1");
        advance(Duration::from_secs(1)).await;
        assert_eq!(get(&cache, &source, 12 * HOUR).await.unwrap(), "token-2");
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_one_fetch() {
        let cache = TokenCache::default();
        let source = Source::default();
        let all = (0..100).map(|_| get(&cache, &source, HOUR));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(|token| token.as_ref().unwrap() == "token-1"));
        assert_eq!(source.requests(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_fetch_is_repeated_by_the_next_caller() {
        let cache = TokenCache::default();
        let source = Source::default();
        let gone = tokio::time::timeout(Duration::from_millis(10), get(&cache, &source, HOUR));
        assert!(gone.await.is_err());
        assert_eq!(get(&cache, &source, HOUR).await.unwrap(), "token-2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_token_outlives_an_outage() {
        let cache = TokenCache::default();
        let source = Source::default();
        get(&cache, &source, 12 * HOUR).await.unwrap();
        source.fails(true);
        advance(7 * HOUR).await;
        for _ in 0..10 {
            assert_eq!(get(&cache, &source, 12 * HOUR).await.unwrap(), "token-1");
        }
        assert_eq!(source.requests(), 2, "not one request to AWS for each image");
        advance(RENEW_PAUSE).await;
        get(&cache, &source, 12 * HOUR).await.unwrap();
        assert_eq!(source.requests(), 3);
        advance(5 * HOUR).await;
        assert!(get(&cache, &source, 12 * HOUR).await.is_err(), "it is over");
        source.fails(false);
        assert_eq!(get(&cache, &source, 12 * HOUR).await.unwrap(), "token-5");
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_refused_token_is_dropped() {
        let cache = TokenCache::default();
        let source = Source::default();
        let first: Token = Secret::new(get(&cache, &source, HOUR).await.unwrap());
        cache.forget(&first).await;
        assert_eq!(get(&cache, &source, HOUR).await.unwrap(), "token-2");
        cache.forget(&first).await;
        assert_eq!(
            get(&cache, &source, HOUR).await.unwrap(),
            "token-2",
            "a late refusal changes nothing"
        );
    }

    #[test]
    fn token_life_is_clamped() {
        let now: Timestamp = "2026-09-18T08:00:00Z".parse().unwrap();
        for (at, want) in [
            (Some("2026-09-18T20:00:00Z"), 12 * HOUR),
            (Some("2026-09-18T09:00:00Z"), HOUR),
            (Some("2015-01-01T00:00:00Z"), MIN_LIFE), // the answer of a fake service
            (Some("2026-09-18T08:00:00Z"), MIN_LIFE),
            (Some("2126-09-18T08:00:00Z"), MAX_LIFE),
            (None, MAX_LIFE),
        ] {
            let at = at.map(|at| at.parse().unwrap());
            assert_eq!(life(at, now), want, "{at:?}");
        }
    }

    #[test]
    fn a_token_is_read() {
        for (plain, want) in [
            ("AWS:secret", Some("secret")),
            ("AWS:a:b", Some("a:b")),
            ("AWS:", None),
            ("root:secret", None),
            ("nothing", None),
        ] {
            let token = read(&BASE64_STANDARD.encode(plain));
            assert_eq!(token.as_ref().map(|t| t.reveal().as_str()), want, "{plain}");
        }
        assert!(read("%%%").is_none());
    }
}
