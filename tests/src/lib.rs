//! What tests and benchmarks share: the harness around the monitor, and the benchmarks' measuring side.

pub mod bench;
pub mod cpus;
pub mod existing_slots;
pub mod harness;
pub mod kicks;
pub mod live_bus;
pub mod live_dirty;
pub mod live_memory;
pub mod plugging;
pub mod ringing;
pub mod sequence;
pub mod small_machine;
pub mod standstill;
pub mod stream_peer;
pub mod sweep;
pub mod tap;
pub mod traffic;
pub mod vhost_user_net;
