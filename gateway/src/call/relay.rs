//! What passes between the caller and the VM, in either direction: headers, the body within its
//! limits, and the bytes of an upgraded connection. The VM is chosen and called by `invoke.rs`.
//!
//! | file | what it does |
//! |---|---|
//! | `headers` | which headers pass, in either direction |
//! | `limited` | the request's body, counted and limited |
//! | `pace` | how slowly it may arrive |
//! | `upgrade` | bytes in both directions after a 101 |

pub(crate) mod headers;
pub(crate) mod limited;
pub(crate) mod pace;
pub(crate) mod upgrade;
