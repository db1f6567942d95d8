//! The store's traits, one file for each topic. Here are transactions, time limits and
//! announcements, and no statement.

mod deployments;
mod fleet;
mod functions;
mod images;
mod keys;
mod leases;
mod traffic;
