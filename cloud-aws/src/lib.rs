//! What Epsilon asks of AWS: registry tokens, the scale group, the instance’s own metadata.
//!
//! | module | what it asks | who calls it |
//! |---|---|---|
//! | [`imds`] | who this VM is, whether it is about to go | vm-agent |

pub mod imds;
