//! Resident memory of a process.

use epsilon_e2e::wait::{SOON, until};

/// Resident bytes, once they no longer fall: the allocator gives memory back in the background.
pub(crate) async fn settled(pid: u32) -> u64 {
    let mut last = u64::MAX;
    let mut steady = 0;
    until("memory settles", SOON, async || {
        let now = resident(pid);
        steady = if now >= last { steady + 1 } else { 0 };
        last = now;
        if steady >= 40 { Ok(now) } else { Err(now) }
    })
    .await
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
