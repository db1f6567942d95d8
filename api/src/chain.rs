//! Prints an error with its causes on one line. The only place that walks `source()`: an error's
//! own text never repeats its cause. Some errors of other crates do (sqlx's, Docker's): a cause
//! that the text before it ends with is left out.

use std::{error::Error, fmt};

/// Displays `error: cause: cause of the cause`.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printed = self.0.to_string();
        f.write_str(&printed)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !printed.ends_with(&text) {
                write!(f, ": {text}")?;
                printed = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Chain;
    use std::{error::Error, fmt};

    #[derive(Debug)]
    struct Says(&'static str, Option<Box<Says>>);

    impl fmt::Display for Says {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Says {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn what_a_cause_repeats_is_said_once() {
        for (texts, want) in [
            (
                &["the store is unavailable", "no connection"][..],
                "the store is unavailable: no connection",
            ),
            (
                &["in the store: refused", "refused", "os error 111"],
                "in the store: refused: os error 111",
            ),
            (&["refused", "refused", "refused"], "refused"),
            (&["refused", "no", "refused"], "refused: no: refused"),
        ] {
            let chain =
                texts.iter().rev().fold(None, |cause, text| Some(Box::new(Says(text, cause))));
            assert_eq!(Chain(&*chain.unwrap()).to_string(), want);
        }
    }
}
