//! Background loops that bring the fleet and the tables in memory to what the store says. Each is
//! one task with its own pace; no call waits for any of them.
//!
//! | file | what it brings in line |
//! |---|---|
//! | `store_sync` | routes, members and drains in memory with the store that several gateways share |
//! | `orphan_instances` | instances whose version no longer serves are stopped |
//! | `retention` | versions beyond the configured number are removed, with their images |
//! | `min_instances` | instances that functions want ready without calls |
//! | `split_abort` | a traffic split whose new version fails too often is ended |
//! | `prewarm` | images and instances for the VM that placement prefers |
//! | `drain_prewarm` | instances elsewhere before a VM drains |

pub(crate) mod drain_prewarm;
pub(crate) mod min_instances;
pub(crate) mod orphan_instances;
pub(crate) mod prewarm;
pub(crate) mod retention;
pub(crate) mod split_abort;
pub(crate) mod store_sync;
