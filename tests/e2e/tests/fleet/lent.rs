//! Fleets that tests use one after the other, because starting and ending one takes longer than
//! most tests. What a test stopped is started again for the next one; a failed test discards its
//! fleet.
//!
//! Not for tests of where functions are placed: they need a fresh fleet.

use super::{TURN, functions};
use epsilon_e2e::fleet::{Fleet, Plan};
use epsilon_store::testing::Postgres;
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};
use tokio::sync::MutexGuard;

/// Functions deployed on a lent fleet: `f0`, `f1`…
pub(crate) const FUNCTIONS: usize = 6;

/// Fleets for the next test.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    one: Option<Fleet>,
    two: Option<(Arc<Postgres>, Fleet)>,
}

/// A fleet until the end of the test, and the lock to use it.
pub(crate) struct Lent {
    fleet: Option<Fleet>,
    postgres: Option<Arc<Postgres>>,
    turn: MutexGuard<'static, Spare>,
}

impl Lent {
    /// The database of two gateways.
    pub(crate) fn postgres(&self) -> Arc<Postgres> {
        Arc::clone(self.postgres.as_ref().expect("a fleet of two gateways"))
    }
}

/// One gateway, three agents.
pub(crate) async fn one() -> Lent {
    let mut turn = TURN.lock().await;
    let fleet = match turn.one.take() {
        Some(fleet) => repaired(fleet).await,
        None => started(Plan::default()).await,
    };
    Lent { fleet: Some(fleet), postgres: None, turn }
}

/// Two gateways on one database, two agents.
pub(crate) async fn two() -> Lent {
    let mut turn = TURN.lock().await;
    let (postgres, fleet) = match turn.two.take() {
        Some((postgres, fleet)) => (postgres, repaired(fleet).await),
        None => {
            let postgres = Arc::new(Postgres::start());
            let store = Some(postgres.database().await);
            let plan = Plan { gateways: 2, agents: 2, store, ..Plan::default() };
            (postgres, started(plan).await)
        }
    };
    Lent { fleet: Some(fleet), postgres: Some(postgres), turn }
}

async fn started(plan: Plan) -> Fleet {
    let fleet = Fleet::start(plan).await;
    fleet.deploy(&functions(FUNCTIONS)).await;
    fleet
}

async fn repaired(mut fleet: Fleet) -> Fleet {
    let agents = fleet.agents.iter_mut().map(|agent| &mut agent.program);
    for program in agents.chain([&mut fleet.builder]) {
        if program.has_ended() {
            program.start_again().await;
        }
    }
    fleet.all_ready().await;
    fleet
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(fleet) = self.fleet.take().filter(|_| !std::thread::panicking()) else { return };
        match self.postgres.take() {
            Some(postgres) => self.turn.two = Some((postgres, fleet)),
            None => self.turn.one = Some(fleet),
        }
    }
}

impl Deref for Lent {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        self.fleet.as_ref().expect("it is here until the end")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Fleet {
        self.fleet.as_mut().expect("it is here until the end")
    }
}
