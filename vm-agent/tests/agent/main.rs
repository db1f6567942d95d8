//! The whole agent in this process, on the scripted engine: its containers are tasks that speak the
//! wrapper's protocol over real unix sockets, and do what the path of a call says (`wrapper.rs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod background;
mod calls;
mod faults;
mod fleet;
mod freezing;
mod gateway;
mod images;
mod keep;
mod leftovers;
mod lifecycle;
mod neighbours;
mod outages;
mod restart;
mod settled;
mod support;
mod termination;
mod wrapper;
