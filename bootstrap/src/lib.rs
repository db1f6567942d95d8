//! Start and end of every Epsilon program: settings from file, environment and flags; logging; the
//! data folder and its lock; signals; and errors with their exit codes. No part of the platform is
//! known here.
//!
//! | module | what it is |
//! |---|---|
//! | [`arguments`] | command-line arguments |
//! | [`settings`] | settings: file, overridden by environment, overridden by flags |
//! | [`data_dir`] | the data folder, and what the CLI finds there |
//! | [`lock`] | one gateway per data folder |
//! | [`log`] | lines for people or JSON for collectors |
//! | [`signals`] | "please end", once or twice |
//! | [`remove_untrusted_dir`] | removes what other people's code has left |
//! | [`files`] | room for many connections |
//! | [`metrics`] | metrics of the program itself |
//! | [`program`] | the frame of the fleet's programs: common flags, the runtime, "ready" |
//! | [`visible`] | text of others, shown so that it does not steer a terminal |
//! | [`failure`] | what went wrong, what to do next, the exit code |

pub mod arguments;
pub mod data_dir;
pub mod failure;
pub mod files;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod program;
pub mod remove_untrusted_dir;
pub mod settings;
pub mod signals;
pub mod sockets;
pub mod visible;
