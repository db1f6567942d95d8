//! How long images stay in a repository that Epsilon created. Pure.

#[cfg(feature = "sdk")]
use serde_json::json;
use std::time::Duration;

/// Limits of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Number of newest images that stay, with a tag or without.
    pub images: u32,
    /// How long an image that lost its tag stays; at least a day.
    pub untagged: Duration,
}

#[cfg(feature = "sdk")]
impl Retention {
    /// The policy as JSON for ECR, which counts in whole days.
    pub(super) fn policy(&self) -> String {
        let days = (self.untagged.as_secs() / (24 * 3600)).max(1);
        json!({ "rules": [
            {
                "rulePriority": 1,
                "description": "Images that lost their tag",
                "selection": {
                    "tagStatus": "untagged",
                    "countType": "sinceImagePushed",
                    "countUnit": "days",
                    "countNumber": days,
                },
                "action": { "type": "expire" },
            },
            {
                // A rule for all images has to have the highest number.
                "rulePriority": 2,
                "description": "All but the newest",
                "selection": {
                    "tagStatus": "any",
                    "countType": "imageCountMoreThan",
                    "countNumber": self.images.max(1),
                },
                "action": { "type": "expire" },
            },
        ] })
        .to_string()
    }
}

#[cfg(all(test, feature = "sdk"))]
mod tests {
    use super::*;

    #[test]
    fn a_policy_counts_images_and_whole_days() {
        for (hours, days) in [(0, 1), (24, 1), (47, 1), (14 * 24, 14)] {
            let keep = Retention { images: 50, untagged: Duration::from_secs(hours * 3600) };
            let policy: serde_json::Value = serde_json::from_str(&keep.policy()).unwrap();
            let selection = |at: usize| policy["rules"][at]["selection"].clone();
            assert_eq!(selection(0)["countNumber"], days, "{hours} h");
            assert_eq!(selection(1)["countNumber"], 50);
            assert_eq!(selection(1)["tagStatus"], "any");
        }
    }
}
