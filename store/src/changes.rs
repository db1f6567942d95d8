//! Notifications of store changes to listeners inside one process. Nothing is stored: a listener
//! that is too slow must read everything again.

use futures_util::stream::{self, BoxStream};
use std::fmt;
use tokio::sync::broadcast::{self, error::RecvError};

/// Changes that a listener may miss before it gets [`Change::Resync`]. A listener reads whole
/// tables anyway, so a longer queue would not help it.
const MAX_LAG: usize = 64;

/// Kinds of changes that listeners are notified of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// The versions that serve.
    Routes,
    /// Members or gateways of the fleet. Heartbeats alone are not announced.
    Members,
    /// The VMs that drain.
    Draining,
    /// Changes may have been missed: read everything again.
    Resync,
}

impl Change {
    /// The payload between gateways.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Members => "members",
            Self::Draining => "draining",
            Self::Resync => "resync",
        }
    }

    /// Parses [`Change::text`].
    pub(crate) fn read(text: &str) -> Option<Self> {
        [Self::Routes, Self::Members, Self::Draining, Self::Resync]
            .into_iter()
            .find(|change| change.text() == text)
    }
}

/// Sends changes to every listener.
#[derive(Clone)]
pub(crate) struct Changes(broadcast::Sender<Change>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(MAX_LAG))
    }

    /// Announces a change that is already readable. There may be no listener.
    pub(crate) fn announce(&self, change: Change) {
        let _ = self.0.send(change);
    }

    /// Changes from now on; ends when the last [`Changes`] is dropped.
    pub(crate) fn listen(&self) -> BoxStream<'static, Change> {
        Box::pin(stream::unfold(self.0.subscribe(), async |mut from| match from.recv().await {
            Ok(change) => Some((change, from)),
            Err(RecvError::Lagged(_)) => Some((Change::Resync, from)),
            Err(RecvError::Closed) => None,
        }))
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("listeners", &self.0.receiver_count()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;

    #[tokio::test]
    async fn a_slow_listener_reads_everything_again() {
        let changes = Changes::new();
        changes.announce(Change::Members); // no listener yet
        let mut changed = changes.listen();
        changes.announce(Change::Routes);
        assert_eq!(changed.next().await, Some(Change::Routes));
        for _ in 0..=MAX_LAG {
            changes.announce(Change::Draining);
        }
        assert_eq!(changed.next().await, Some(Change::Resync));
        assert_eq!(changed.next().await, Some(Change::Draining));
        drop(changes);
        assert_eq!(changed.by_ref().count().await, MAX_LAG - 1);
    }
}
