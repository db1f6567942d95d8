//! A small registry that does what registries rarely do: answers to `GET …/blobs/…` in the order of
//! a script, the last answer for good.

use parking_lot::Mutex;
use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// These bytes, complete.
    Good(Vec<u8>),
    /// The head of these bytes and half of them, then a closed connection.
    Cut(Vec<u8>),
    /// This status, with an OCI error.
    Status(u16, &'static str),
    /// No answer.
    Hang,
}

pub(super) struct Scripted {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Scripted {
    pub(super) async fn start(script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, log) = (Arc::clone(&script), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answers, log) = (Arc::clone(&answers), Arc::clone(&log));
                tokio::spawn(async move { serve(stream, &answers, &log).await });
            }
        });
        Self { address, script, requests, task: task.abort_handle() }
    }

    pub(super) fn repository(&self) -> String {
        format!("{}/shop/pay", self.address)
    }

    /// Replaces the script.
    pub(super) fn answer(&self, script: &[Answer]) {
        *self.script.lock() = script.to_vec().into();
    }

    /// First lines of all requests.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one request, then closes the connection: a client must not rely on more.
async fn serve(
    mut stream: TcpStream,
    script: &Mutex<VecDeque<Answer>>,
    requests: &Mutex<Vec<String>>,
) -> Option<()> {
    let (from, mut to) = stream.split();
    let mut lines = BufReader::new(from).lines();
    let first = lines.next_line().await.ok()??;
    while !lines.next_line().await.ok()??.is_empty() {}
    requests.lock().push(first);
    let answer = {
        let mut script = script.lock();
        let last = script.back().cloned();
        script.pop_front().inspect(|_| {
            if script.is_empty() {
                script.extend(last);
            }
        })
    };
    let (status, body, cut) = match answer? {
        Answer::Hang => {
            tokio::time::sleep(Duration::from_secs(600)).await;
            return None;
        }
        Answer::Good(body) => (200, body, false),
        Answer::Cut(body) => (200, body, true),
        Answer::Status(status, code) => {
            let body = format!(r#"{{"errors":[{{"code":"{code}","message":"scripted"}}]}}"#);
            (status, body.into_bytes(), false)
        }
    };
    let head = format!(
        "HTTP/1.1 {status} scripted\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    to.write_all(head.as_bytes()).await.ok()?;
    let most = if cut { body.len() / 2 } else { body.len() };
    to.write_all(&body[..most]).await.ok()?;
    to.shutdown().await.ok()
}
