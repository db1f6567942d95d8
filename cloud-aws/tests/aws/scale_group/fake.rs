//! A scripted EC2 Auto Scaling: answers each action as scripted, and records requests. Unscripted
//! actions are refused.

use bytes::Bytes;
use epsilon_cloud_aws::scale_group::{ScaleGroup, in_moto};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::{collections::HashMap, convert::Infallible, sync::Arc};
use tokio::{net::TcpListener, task::JoinHandle};

pub(crate) struct Fake {
    endpoint: String,
    script: Arc<Script>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<String, (u16, String)>>,
    /// The form of each request, in order.
    requests: Mutex<Vec<String>>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Script::default());
        let shared = Arc::clone(&script);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&shared);
                let service = service_fn(move |request| {
                    let script = Arc::clone(&script);
                    async move { Ok::<_, Infallible>(script.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { endpoint, script, task }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The group `vms` on this fake.
    pub(crate) async fn group(&self) -> ScaleGroup {
        ScaleGroup::new(&in_moto::sdk(&self.endpoint).await, "vms".into())
    }

    /// The action succeeds with this result.
    pub(crate) fn answers(&self, action: &str, status: u16, result: &str) {
        let body = format!(
            "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\">\
             <{action}Result>{result}</{action}Result></{action}Response>"
        );
        self.page(action, status, &body);
    }

    /// The action fails with this code and this text.
    pub(crate) fn refuses(&self, action: &str, status: u16, code: &str, words: &str) {
        let body = format!(
            "<ErrorResponse xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>{words}</Message></Error><RequestId>r-1</RequestId></ErrorResponse>"
        );
        self.page(action, status, &body);
    }

    /// The action is answered with this text.
    pub(crate) fn page(&self, action: &str, status: u16, body: &str) {
        self.script.answers.lock().insert(action.to_owned(), (status, body.to_owned()));
    }

    /// The forms of all requests for this action.
    pub(crate) fn requests(&self, action: &str) -> Vec<String> {
        let requests = self.script.requests.lock();
        requests
            .iter()
            .filter(|form| form.contains(&format!("Action={action}&")))
            .cloned()
            .collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Script {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let form = request.into_body().collect().await.unwrap().to_bytes();
        let form = String::from_utf8_lossy(&form).into_owned();
        let action =
            form.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap_or_default();
        let scripted = self.answers.lock().get(action).cloned();
        let (status, body) =
            scripted.unwrap_or((400, format!("<html>{action} is not scripted</html>")));
        self.requests.lock().push(form);
        let mut answer = Response::new(Full::from(body));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer
    }
}
