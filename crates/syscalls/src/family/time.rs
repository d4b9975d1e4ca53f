//! Clocks, timers, sleeping.

use crate::rule::{by, bytes, input, output};
use crate::shape::{ITIMERSPEC, TIMESPEC, TIMEVAL, sigevent};
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// Clocks, timers, sleeping.
    TIME:
    35 nanosleep(req: ptr, rem: ptr)
        [input(req, bytes(TIMESPEC)), output(rem, bytes(TIMESPEC)).or_null().if_interrupted()] is BLOCKS;
    36 getitimer(which: int, value: ptr) [by(getitimer)];
    37 alarm(seconds: uint);
    38 setitimer(which: int, value: ptr, ovalue: ptr) [by(setitimer)];
    96 gettimeofday(tv: ptr, tz: ptr) [output(tv, bytes(TIMEVAL)).or_null(), output(tz, bytes(8)).or_null()];
    100 times(buf: ptr) [output(buf, bytes(32)).or_null()];
    159 adjtimex(buf: ptr) [by(adjtimex)];
    164 settimeofday(tv: ptr, tz: ptr) [input(tv, bytes(TIMEVAL)).or_null(), input(tz, bytes(8)).or_null()];
    201 time(t: ptr) [output(t, bytes(8)).or_null()];
    222 timer_create(clockid: int, evp: ptr, timerid: ptr) [by(timer_create), output(timerid, bytes(4))];
    223 timer_settime(timerid: int, flags: int, value: ptr, ovalue: ptr)
        [input(value, bytes(ITIMERSPEC)), output(ovalue, bytes(ITIMERSPEC)).or_null()];
    224 timer_gettime(timerid: int, value: ptr) [output(value, bytes(ITIMERSPEC))];
    225 timer_getoverrun(timerid: int);
    226 timer_delete(timerid: int);
    227 clock_settime(clk_id: int, tp: ptr) [input(tp, bytes(TIMESPEC))];
    228 clock_gettime(clk_id: int, tp: ptr) [output(tp, bytes(TIMESPEC))];
    229 clock_getres(clk_id: int, res: ptr) [output(res, bytes(TIMESPEC)).or_null()];
    230 clock_nanosleep(clkid: int, flags: int, rqtp: ptr, rmtp: ptr) [by(clock_nanosleep)] is BLOCKS;
    283 timerfd_create(clockid: int, flags: int) is OPENS;
    286 timerfd_settime(ufd: int, flags: int, utmr: ptr, otmr: ptr)
        [input(utmr, bytes(ITIMERSPEC)).called("timerfd_settime(result)"),
         output(otmr, bytes(ITIMERSPEC)).or_null().called("timerfd_settime(result)")];
    287 timerfd_gettime(ufd: int, otmr: ptr) [output(otmr, bytes(ITIMERSPEC)).called("timerfd_gettime(result)")];
    305 clock_adjtime(id: int, buf: ptr) [by(clock_adjtime)];
}

const SPAN: u64 = TIMEVAL as u64;

fn getitimer(visit: &mut Visit<'_>) {
    let at = visit.arg(1);
    visit.whole("getitimer(&value->it_interval)", at, SPAN);
    visit.whole("getitimer(&value->it_value)", at.wrapping_add(SPAN), SPAN);
}

fn setitimer(visit: &mut Visit<'_>) {
    let (new, old) = (visit.arg(1), visit.arg(2));
    if new != 0 {
        visit.input("setitimer(&value->it_interval)", new, SPAN);
        visit.input("setitimer(&value->it_value)", new.wrapping_add(SPAN), SPAN);
    }
    if old != 0 {
        visit.whole("setitimer(&ovalue->it_interval)", old, SPAN);
        visit.whole("setitimer(&ovalue->it_value)", old.wrapping_add(SPAN), SPAN);
    }
}

fn timer_create(visit: &mut Visit<'_>) {
    let names = [
        "timer_create(evp.sigev_value)",
        "timer_create(evp.sigev_signo)",
        "timer_create(evp.sigev_notify)",
        "timer_create(evp.sigev_notify_thread_id)",
    ];
    if visit.arg(1) != 0 {
        sigevent(visit, names, visit.arg(1));
    }
}

/// What remains is written only if a signal ended a relative sleep.
fn clock_nanosleep(visit: &mut Visit<'_>) {
    const TIMER_ABSTIME: i64 = 1;
    visit.input("clock_nanosleep(rqtp)", visit.arg(2), u64::from(TIMESPEC));
    if visit.arg(3) != 0 && visit.int(1) & TIMER_ABSTIME == 0 {
        let happened = visit.was_interrupted();
        visit.output_if("clock_nanosleep(rmtp)", visit.arg(3), u64::from(TIMESPEC), happened);
    }
}

/// `struct timex`: which bits of `modes` look at which field.
struct Adjustments {
    modes: &'static str,
    fields: [(u64, &'static str, u64, u64); 8],
    whole: &'static str,
}

macro_rules! adjustments {
    ($call:literal) => {
        &Adjustments {
            modes: concat!($call, "(timex->modes)"),
            fields: [
                (0x0001, concat!($call, "(timex->offset)"), 8, 8),
                (0x0002, concat!($call, "(timex->freq)"), 16, 8),
                (0x0004, concat!($call, "(timex->maxerror)"), 24, 8),
                (0x0008, concat!($call, "(timex->esterror)"), 32, 8),
                (0x0010, concat!($call, "(timex->status)"), 40, 4),
                (0x00a0, concat!($call, "(timex->constant)"), 48, 8),
                (0x4000, concat!($call, "(timex->tick)"), 88, 8),
                (0x0100, concat!($call, "(timex->time)"), 72, 16),
            ],
            // Memcheck calls it so for both calls.
            whole: "adjtimex(timex)",
        }
    };
}

fn adjust(visit: &mut Visit<'_>, names: &'static Adjustments, at: u64) {
    const TIMEX: u64 = 208;
    const ADJ_ADJTIME: u64 = 0x8000;
    const ADJ_OFFSET_READONLY: u64 = 0x2000;
    visit.input(names.modes, at, 4);
    let modes = visit.u32_or_0(at);
    for &(bits, name, offset, size) in &names.fields {
        // The old adjtime() looks at the offset alone, unless it only asks.
        let is_looked_at =
            if modes & ADJ_ADJTIME != 0 { bits == 1 && modes & ADJ_OFFSET_READONLY == 0 } else { modes & bits != 0 };
        if is_looked_at {
            visit.input(name, at.wrapping_add(offset), size);
        }
    }
    visit.whole(names.whole, at, TIMEX);
}

fn adjtimex(visit: &mut Visit<'_>) {
    adjust(visit, adjustments!("adjtimex"), visit.arg(0));
}

fn clock_adjtime(visit: &mut Visit<'_>) {
    adjust(visit, adjustments!("clock_adjtime"), visit.arg(1));
}
