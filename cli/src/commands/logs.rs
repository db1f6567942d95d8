//! `epsilon logs NAME`: a function's log. With `--follow`, new lines as they arrive, also across a
//! restart of the gateway.

mod cursors;

use crate::{
    client::{Client, JsonLines, LineError},
    failure::Failure,
    globals::Globals,
    output,
};
use clap::Args;
use console::style;
use cursors::Cursors;
use epsilon_api::{
    ids::RequestId,
    log::{Level, LogRecord},
};
use std::time::Duration;

/// Pause between two attempts to reach a gateway that does not answer: a restart takes a second or
/// two.
const RETRY_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The function
    name: String,
    /// Continue with new lines as they come
    #[arg(long, short)]
    follow: bool,
    /// Only the lines of one call
    #[arg(long, value_name = "ID")]
    request: Option<RequestId>,
    /// Only the newest N stored lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// With --follow: how long to look for a gateway that is gone
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    reconnect: Duration,
}

impl Logs {
    pub(crate) async fn run(self, globals: &Globals) -> Result<(), Failure> {
        let client = Client::new(globals)?;
        let mut cursors = Cursors::default();
        let mut lines = self.open(&client, &cursors).await?;
        loop {
            match lines.next::<LogRecord>().await {
                Ok(Some(record)) => {
                    cursors.record_read(&record);
                    print(&record, globals.json)?;
                }
                Ok(None) if !self.follow => return Ok(()),
                Err(LineError::Broken(_)) | Ok(None) if self.follow => {
                    eprintln!(
                        "{}",
                        style("(the gateway does not answer; reconnecting)").for_stderr().dim()
                    );
                    lines = self.reopen(&client, &cursors).await?;
                }
                Ok(None) => return Ok(()),
                Err(err) => {
                    return Err(Failure::new(
                        "CONNECTION_LOST",
                        "the connection broke while reading the log",
                    )
                    .with_cause(&err));
                }
            }
        }
    }

    async fn open(&self, client: &Client, after: &Cursors) -> Result<JsonLines, Failure> {
        client.logs(&self.name, self.follow, self.request.as_ref(), self.tail, after.all()).await
    }

    /// Requests the lines since the cursors.
    async fn reopen(&self, client: &Client, after: &Cursors) -> Result<JsonLines, Failure> {
        let attempts = async {
            loop {
                tokio::time::sleep(RETRY_EVERY).await;
                match self.open(client, after).await {
                    Err(failure) if matches!(failure.code(), "NOT_RUNNING" | "CONNECTION_LOST") => {
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(self.reconnect, attempts).await {
            Ok(opened) => opened,
            Err(_) => {
                let waited = humantime::format_duration(self.reconnect);
                let message = format!("the gateway did not answer again within {waited}");
                Err(Failure::new("CONNECTION_LOST", message).hint("start it with `epsilon up`"))
            }
        }
    }
}

fn print(record: &LogRecord, json: bool) -> Result<(), Failure> {
    if json { output::json_line(record) } else { output::line(&text(record)) }
}

/// `02:03:04.567 info  hello@3 1a2b3c4d  the message`; further lines of a stack are indented.
fn text(record: &LogRecord) -> String {
    let time = record.time.strftime("%H:%M:%S%.3f");
    let level = format!("{:5}", record.level);
    let level = match record.level {
        Level::Debug => style(level).dim(),
        Level::Info => style(level).green(),
        Level::Warn => style(level).yellow(),
        Level::Error => style(level).red(),
    };
    let whose = format!("{}@{}", record.function, record.version);
    let call = record.request_id.as_ref().map_or("-", |id| id.as_str());
    let message = output::visible(record.message.trim_end()).replace('\n', "\n    ");
    format!("{} {level} {whose} {}  {message}", style(time).dim(), style(call).dim())
}
