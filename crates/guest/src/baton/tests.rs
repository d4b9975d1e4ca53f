//! The baton between host threads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// Threads by the id that the baton knows them by: set when one is asked to give way.
static ASKED: [AtomicBool; 32] = [const { AtomicBool::new(false) }; 32];

fn ask(tid: i32) {
    ASKED[tid as usize].store(true, Ordering::Relaxed);
}

fn waiter(tid: i32) -> Waiter {
    let waiter = Waiter::new();
    waiter.set_tid(tid);
    waiter
}

#[test]
fn one_at_a_time_and_nobody_is_lost() {
    static BATON: Baton = Baton::new(100_000_000, |_| {});
    let inside = AtomicUsize::new(0);
    let total = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for tid in 1..=16 {
            let (inside, total) = (&inside, &total);
            scope.spawn(move || {
                let me = waiter(tid);
                for _ in 0..2000 {
                    BATON.acquire(&me);
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two have the baton");
                    assert_eq!(BATON.holder(), tid);
                    total.fetch_add(1, Ordering::Relaxed);
                    inside.fetch_sub(1, Ordering::Relaxed);
                    BATON.release();
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 32_000);
    assert_eq!(BATON.holder(), 0);
    assert!(!BATON.is_wanted());
}

#[test]
fn who_waits_longest_is_next() {
    static BATON: Baton = Baton::new(1_000_000_000, |_| {});
    let first = waiter(1);
    BATON.acquire(&first);
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for tid in 2..10 {
            let order = &order;
            scope.spawn(move || {
                let me = waiter(tid);
                BATON.acquire(&me);
                order.lock().unwrap().push(tid);
                BATON.release();
            });
            while BATON.waiting.load(Ordering::Relaxed) != tid as u32 - 1 {
                std::thread::yield_now();
            }
        }
        BATON.release();
    });
    assert_eq!(*order.lock().unwrap(), (2..10).collect::<Vec<_>>());
}

#[test]
fn who_never_lets_go_is_asked_to() {
    const SLICE: Duration = Duration::from_millis(2);
    static BATON: Baton = Baton::new(SLICE.as_nanos() as u64, ask);
    let turns: Vec<AtomicU64> = (0..6).map(|_| AtomicU64::new(0)).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for tid in 20..26 {
            let turns = &turns;
            scope.spawn(move || {
                let me = waiter(tid);
                BATON.acquire(&me);
                // Twenty turns for everybody: computes until it is asked to give way.
                while turns.iter().any(|turn| turn.load(Ordering::Relaxed) < 20) {
                    if ASKED[tid as usize].swap(false, Ordering::Relaxed) {
                        turns[tid as usize - 20].fetch_add(1, Ordering::Relaxed);
                        BATON.give_way(&me);
                    }
                }
                BATON.release();
            });
        }
    });
    let turns: Vec<u64> = turns.iter().map(|turn| turn.load(Ordering::Relaxed)).collect();
    let (least, most) = (turns.iter().min().unwrap(), turns.iter().max().unwrap());
    assert!(most - least <= 2, "turns go round: {turns:?}");
    assert!(begin.elapsed() >= SLICE * 20 * 5, "nobody is asked before its time");
}

#[test]
fn a_child_has_it_alone() {
    static BATON: Baton = Baton::new(1_000_000, |_| {});
    let (me, other) = (waiter(1), waiter(2));
    BATON.acquire(&me);
    BATON.with_queue(|queue| BATON.enqueue(queue, &other));
    assert!(BATON.is_wanted());
    BATON.reset(&me);
    assert!(!BATON.is_wanted());
    BATON.release();
    assert_eq!(BATON.holder(), 0, "nobody was in the queue");
}

#[test]
fn who_keeps_it_is_not_asked() {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    static BATON: Baton = Baton::new(1_000_000, |_| {
        TIMES.fetch_add(1, Ordering::Relaxed);
    });
    let times = || TIMES.load(Ordering::Relaxed);
    let me = waiter(1);
    BATON.acquire(&me);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            BATON.acquire(&waiter(2));
            BATON.release();
        });
        let limit = Instant::now() + Duration::from_secs(20);
        let wait_for_one = |before| {
            while times() == before && Instant::now() < limit {
                std::thread::yield_now();
            }
            assert_ne!(times(), before, "who waits asks");
        };
        wait_for_one(0);
        BATON.keep();
        let before = times();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(times(), before);
        BATON.keep_no_longer();
        wait_for_one(before);
        BATON.release();
    });
}
