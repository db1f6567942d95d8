//! What passes between the caller and the VM, in either direction: headers, and the bytes of an
//! upgraded connection. The VM is chosen and called by `invoke.rs`.
//!
//! | file | what it does |
//! |---|---|
//! | `headers` | which headers pass, in either direction |
//! | `upgrade` | bytes in both directions after a 101 |

pub(crate) mod headers;
pub(crate) mod upgrade;
