//! The program on listeners passed by the service manager: a restart refuses no connection.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Passes two sockets as a service manager does with two socket units. They are duplicated to
/// numbers from 10 on first, because the test's own may be 3 and 4 in the other order.
const START: &str = r#"exec {one}<&"$1" {two}<&"$2"; exec 3<&"$one" 4<&"$two"; shift 2
export LISTEN_FDS=2 LISTEN_FDNAMES=control:calls LISTEN_PID=$$; exec "$@""#;
/// Deadline of each wait in this file.
const LIMIT: Duration = Duration::from_secs(30);

/// Kills the gateway at the end of the test, also after a failure.
struct Gateway(Child);

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the gateway on these listeners and waits until it is ready.
fn start(calls: &TcpListener, control: &TcpListener, data: &Path) -> Gateway {
    for listener in [calls, control] {
        rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).unwrap();
    }
    let (calls, control) = (calls.as_raw_fd().to_string(), control.as_raw_fd().to_string());
    let gateway = Command::new("bash")
        .args(["-c", START, "bash", &control, &calls, env!("CARGO_BIN_EXE_epsilon-gateway")])
        .arg("--data-dir")
        .arg(data)
        // These addresses cannot be bound here: the passed sockets are used.
        .args(["--listen", "192.0.2.1:1", "--control", "192.0.2.1:1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut gateway = Gateway(gateway);
    let mut ready = String::new();
    BufReader::new(gateway.0.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    assert!(ready.starts_with("ready"), "{ready}");
    gateway
}

fn end(gateway: &mut Gateway) {
    let pid = rustix::process::Pid::from_child(&gateway.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(gateway.0.wait().unwrap().success());
}

/// Sends one request on its own connection; returns the status line.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

#[test]
fn a_restart_on_inherited_listeners_refuses_no_connection() {
    let data = tempfile::tempdir().unwrap();
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (calls, control) = (bind(), bind());
    let addresses =
        [(calls.local_addr().unwrap(), "/"), (control.local_addr().unwrap(), "/healthz")];
    let mut gateway = start(&calls, &control, data.path());
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = addresses
        .into_iter()
        .cycle()
        .take(4)
        .map(|(address, path)| {
            let over = Arc::clone(&over);
            let answered = Arc::clone(&answered);
            thread::spawn(move || {
                while !over.load(SeqCst) {
                    let status = ask(address, path).expect("no connection is refused");
                    assert_eq!(status, "HTTP/1.1 200 OK", "{path}");
                    answered.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let more = |count: usize| {
        let wanted = answered.load(SeqCst) + count;
        while answered.load(SeqCst) < wanted && callers.iter().all(|one| !one.is_finished()) {
            thread::yield_now();
        }
    };
    for _ in 0..3 {
        more(50);
        end(&mut gateway);
        // A caller that arrives while no gateway runs waits.
        let early = thread::spawn(move || ask(addresses[0].0, addresses[0].1));
        gateway = start(&calls, &control, data.path());
        assert_eq!(early.join().unwrap().unwrap(), "HTTP/1.1 200 OK");
    }
    more(50);
    over.store(true, SeqCst);
    for caller in callers {
        caller.join().unwrap();
    }
    end(&mut gateway);
}
