//! Which VM should serve a function: consistent hashing with bounded loads (arXiv 1608.01350). Pure
//! data structures and arithmetic; they know functions and VM ids, nothing of calls or connections.
//! The fleet's view (`fleet`) and the call path (`invoke/place.rs`) both build on it.
//!
//! | file | what it is |
//! |---|---|
//! | `ring` | the hash ring: VMs in the order in which a function prefers them |
//! | `hash` | the hash, which stays the same over releases and processes |
//! | `choice` | which VM of that order gets a call, by what stands against each and what it holds |
//! | `bounded_load` | how many calls a VM may have in flight before the next one is preferred |

pub mod bounded_load;
pub mod choice;
pub mod hash;
pub mod ring;
