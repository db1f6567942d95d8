//! What is asked of AWS, over TCP: the real SDK and the metadata client against stand-ins.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod ecr;
mod imds;
mod scale_group;
