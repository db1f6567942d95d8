//! A scripted control API and a way to run the real binary against it. The fake answers only what a
//! test scripted: an unexpected request gets 599, which no test expects. The probe for a control
//! API, which every command sends first, it answers by itself.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

/// One request received by the fake.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `METHOD /path?query`.
    pub(crate) line: String,
    /// As sent, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The whole body; chunks are joined.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A scripted answer: a status, headers and a body; the connection closes after it.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: String,
    body: String,
}

impl Reply {
    /// A JSON answer.
    pub(crate) fn json(status: u16, body: &str) -> Self {
        Self { status, headers: "content-type: application/json\r\n".into(), body: body.into() }
    }

    /// An answer of several lines.
    pub(crate) fn ndjson(lines: &[&str]) -> Self {
        let body = lines.iter().fold(String::new(), |all, line| all + line + "\n");
        Self { status: 200, headers: "content-type: application/x-ndjson\r\n".into(), body }
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let _ = write!(self.headers, "{name}: {value}\r\n");
        self
    }
}

/// A scripted control API.
pub(crate) struct Fake {
    /// The address that it listens on.
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    /// Starts one. Rows are `(METHOD /path, answer)`; several rows for one request are answered in
    /// turn, the last one for ever. `ADDR` in a body is replaced by the fake's own address.
    pub(crate) fn new(script: Vec<(&str, Reply)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let rows: Vec<_> =
            script.into_iter().map(|(line, reply)| (line.to_owned(), reply)).collect();
        let rows = Arc::new(Mutex::new(VecDeque::from(rows)));
        let all = Arc::clone(&seen);
        // Ends with the test's process: the listener has no other owner.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (rows, all) = (Arc::clone(&rows), Arc::clone(&all));
                thread::spawn(move || serve(stream, addr, &rows, &all));
            }
        });
        Self { addr, seen }
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Runs `epsilon` against this fake.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        epsilon(args, &[("EPSILON_GATEWAY", &format!("http://{}", self.addr))], b"", Path::new("/"))
            .without(&self.addr.to_string())
    }
}

fn serve(
    stream: TcpStream,
    addr: SocketAddr,
    rows: &Mutex<VecDeque<(String, Reply)>>,
    all: &Mutex<Vec<Seen>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(seen) = read_request(&mut reader) else { return };
    let is_probe = seen.line == "GET /healthz";
    if !is_probe {
        all.lock().unwrap().push(seen.clone());
    } else {
        assert_eq!(seen.header("authorization"), None, "the probe carries no key");
    }
    let reply = {
        let mut rows = rows.lock().unwrap();
        let matches = |(line, _): &(String, Reply)| *line == seen.line;
        let first = rows.iter().position(matches);
        let more = rows.iter().filter(|row| matches(row)).count() > 1;
        match first {
            Some(index) if more => rows.remove(index).map(|(_, reply)| reply),
            Some(index) => Some(rows[index].1.clone()),
            None => None,
        }
    };
    let health = || Reply::json(200, "{}").header("x-epsilon-listener", "control");
    let reply = reply.or_else(|| is_probe.then(health));
    let reply = reply.unwrap_or_else(|| Reply::json(599, &format!("unexpected: {}", seen.line)));
    let body = reply.body.replace("ADDR", &addr.to_string());
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n{}\r\n{body}",
        reply.status,
        body.len(),
        reply.headers
    );
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let line = line.trim().strip_suffix(" HTTP/1.1")?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut seen = Seen { line, headers, body: Vec::new() };
    if seen.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            seen.body.extend(&chunk[..size]);
        }
    } else if let Some(length) = seen.header("content-length") {
        let mut body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        seen.body = body;
    }
    Some(seen)
}

/// Result of a run of the binary.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Ran {
    fn without(mut self, addr: &str) -> Self {
        for text in [&mut self.stdout, &mut self.stderr] {
            *text = text.replace(addr, "ADDR");
        }
        self
    }

    /// As in a golden file.
    pub(crate) fn golden(&self) -> String {
        format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

/// Runs `epsilon` on a terminal, where `typed` is typed. Standard output and standard error are
/// mixed.
pub(crate) fn on_a_terminal(fake: &Fake, args: &[&str], typed: &str) -> Ran {
    let quoted = args.iter().map(|arg| format!(" '{arg}'")).collect::<String>();
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(format!("{}{quoted}", env!("CARGO_BIN_EXE_epsilon")))
        .arg("/dev/null")
        .env("EPSILON_DATA_DIR", "/nonexistent/epsilon")
        .env("EPSILON_GATEWAY", format!("http://{}", fake.addr))
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The terminal keeps what is typed until it is read; closing it would hang up.
    let mut input = child.stdin.take().unwrap();
    input.write_all(typed.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    drop(input);
    let stdout = String::from_utf8_lossy(&out.stdout).replace("\r\n", "\n");
    Ran { code: out.status.code().unwrap(), stdout, stderr: String::new() }
}

/// Runs `epsilon` with an empty environment except for what is given.
pub(crate) fn epsilon<A: AsRef<OsStr>>(
    args: &[A],
    env: &[(&str, &str)],
    stdin: &[u8],
    dir: &Path,
) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_epsilon"))
        .args(args)
        .env_clear()
        .env("EPSILON_DATA_DIR", "/nonexistent/epsilon")
        .envs(env.iter().copied())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_owned();
    thread::spawn(move || input.write_all(&stdin)); // a child that does not read is no error
    let out = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: out.status.code().unwrap(), stdout: text(out.stdout), stderr: text(out.stderr) }
}
