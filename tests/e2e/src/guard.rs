//! Cleanup after a value: a small shell script in a process of its own, which waits for the end of
//! its input, a pipe from this process, and then cleans up. So cleanup happens when the value is
//! dropped, when the test panics, and when the whole test process is killed.

use std::{
    ffi::OsStr,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

/// A waiting guard. Dropping it runs the cleanup and waits for it.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// `script` starts its work when its standard input ends.
    pub(crate) fn new<S: AsRef<OsStr>>(
        script: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut guard = Command::new("sh");
        guard.args(["-c", script, "guard"]).args(arguments);
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not in our process group: Ctrl-C in a terminal ends the test, not its guard.
        Self(guard.process_group(0).spawn().expect("a shell"))
    }

    /// Starts the cleanup without waiting.
    pub(crate) fn release(&mut self) {
        drop(self.0.stdin.take());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
        let _ = self.0.wait();
    }
}
