//! The reference proxy: HAProxy as Debian ships it, with one thread and keep-alive on both sides,
//! in front of the very socket that Epsilon's agent calls. It places calls as Epsilon does, by
//! consistent hashing with bounded loads (`hash-balance-factor`, with the gateway's own factor).

use epsilon_e2e::{
    http::Call,
    wait::{SOON, until},
};
use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// A running HAProxy; stopped on drop.
#[derive(Debug)]
pub(crate) struct Haproxy {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Haproxy {
    /// Starts one in front of a server, `unix@PATH` or `IP:PORT`; `None` when it is not installed.
    pub(crate) async fn start(server: &str) -> Option<Self> {
        let folder = TempDir::with_prefix("epsilon-bench-").unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let config = folder.path().join("haproxy.cfg");
        let text = format!(
            "global\n  maxconn 2000\n  nbthread 1\ndefaults\n  mode http\n  option http-keep-alive\n  \
             http-reuse always\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend calls\n  bind {address}\n  default_backend instance\n\
             backend instance\n  balance uri\n  hash-type consistent\n  hash-balance-factor 150\n  \
             server one {server}\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = match command.spawn() {
            Ok(process) => process,
            Err(err) => {
                eprintln!("no HAProxy here ({err}): its row stays empty; the package is `haproxy`");
                return None;
            }
        };
        let haproxy = Self { process, address, _folder: folder };
        until("HAProxy answers", SOON, async || match Call::get("/").try_send(address).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        Some(haproxy)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
