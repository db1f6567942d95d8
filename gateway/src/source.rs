//! Where deployments come from besides the control API: a `git push` to the gateway, and GitHub's
//! webhooks. Both end in `deploy` with an archive.

pub(crate) mod git;
pub(crate) mod github;
