//! The AWS clients over TCP: the real SDK and the metadata client against fakes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod ecr;
mod imds;
mod scale_group;
