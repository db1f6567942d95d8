//! Cold starts through cells, on this machine's Docker: what they serve, that they are as isolated
//! as any instance, and that nothing is left of them, whatever fails.
//!
//! Needs root and `epsilon/runtime-node:current`, which `epsilon up` and the builder's tests make;
//! the wrapper in it is replaced by that of this checkout.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "cells/closed.rs"]
mod closed;
#[path = "cells/faults.rs"]
mod faults;
#[path = "cells/isolation.rs"]
mod isolation;
#[path = "cells/many.rs"]
mod many;
#[path = "cells/restart.rs"]
mod restart;
#[path = "cells/serve.rs"]
mod serve;
#[path = "cells/support.rs"]
mod support;
