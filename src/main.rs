//! The command line.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    few_arenas();
    cli::run()
}

/// glibc gives threads heaps of their own and keeps what was freed in each. With the threads of librdkafka, sled and the
/// runtime that makes the memory grow for long after all that is needed is there (`limn bench stream` with a million
/// events: 516 MiB with two heaps, 635 MiB without).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn few_arenas() {
    // SAFETY: it only sets a number of the allocator, and no other thread is there yet.
    let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
    debug_assert_eq!(set, 1);
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn few_arenas() {}
