//! What open windows take of the heap, counted by the allocator itself: alone in its process, so that nobody else is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use limn::event::{Event, Record};
use limn::window::{Config, Kind, Windows};

/// Bytes asked for and not given back.
static LIVE: AtomicIsize = AtomicIsize::new(0);

struct Counting;

fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

// SAFETY: all is left to the system's allocator; the count changes nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(signed(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(signed(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is ours.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn an_open_window_of_twenty_events_takes_at_most_half_as_much_again_as_its_events_and_200_bytes() {
    const EVENTS: i64 = 20;
    let config = Config {
        kind: Kind::Session {
            gap: Duration::from_secs(30),
            max_duration: Duration::from_secs(3600),
        },
        max_events: 50,
        max_tokens: None,
        max_age: Duration::from_secs(3600),
        out_of_orderness: Duration::from_millis(200),
        allowed_lateness: Duration::ZERO,
        idle_timeout: None,
        max_future_skew: Duration::from_secs(3600),
    };
    let value = vec![b'x'; 200];
    // The map that finds the users is at its fullest and at its emptiest, with as many users as fit into its room and one more.
    for users in [3_584_u32, 3_585, 10_000] {
        let mut windows = Windows::new(Arc::new(config.clone()), None, false);
        let before = LIVE.load(Ordering::Relaxed);
        let (mut raw, mut offset) = (0, 1_000_000_000);
        let mut closed = Vec::new();
        for round in 0..EVENTS {
            for user in 0..users {
                let user = format!("user{user}");
                let event = Event {
                    offset,
                    time_ms: 1_700_000_000_000 + round,
                    tokens: 0,
                    late: false,
                    record: Record {
                        key: Some(user.clone().into_bytes().into()),
                        value: Some(value.clone().into()),
                        ..Record::default()
                    },
                };
                raw += event.bytes();
                offset += 1;
                windows.insert(&user, event, 1_700_000_000_000, &mut closed);
            }
        }
        assert!(closed.is_empty());
        let taken = usize::try_from(LIVE.load(Ordering::Relaxed) - before).unwrap();
        let most = raw * 3 / 2 + users as usize * 200;
        assert!(
            taken <= most,
            "{users} users: {taken} bytes, {most} are allowed"
        );
        let told = windows.open_bytes();
        assert!(
            told * 10 >= taken * 9 && taken * 10 >= told * 8,
            "told {told}, taken {taken}"
        );
    }
}
