//! `git push` as a deployment.

#![allow(dead_code)] // the receiver comes next

pub(crate) mod archive;
pub(crate) mod command;
mod gzip;
