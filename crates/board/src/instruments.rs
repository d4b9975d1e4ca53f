//! What is measured, once for Prometheus and OTLP. Names after Prometheus' conventions (base units, `_total` for what only
//! rises) and OpenTelemetry's (points, UCUM units).

use crate::view::{Board, PartView, TargetView, Verdict};

/// Whether a value only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gauge,
    Counter,
}

/// A metric with a value for each target.
pub(crate) struct Instrument<T> {
    pub prometheus: &'static str,
    pub otlp: &'static str,
    pub unit: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub value: fn(&T) -> Option<f64>,
}

/// Of each target.
pub(crate) const OF_TARGET: &[Instrument<TargetView>] = &[
    Instrument {
        prometheus: "leakscope_target_memory_bytes",
        otlp: "leakscope.target.memory",
        unit: "By",
        help: "Memory that no file stands behind, resident or on swap.",
        kind: Kind::Gauge,
        value: |target| target.memory,
    },
    Instrument {
        prometheus: "leakscope_target_resident_bytes",
        otlp: "leakscope.target.resident",
        unit: "By",
        help: "Resident memory.",
        kind: Kind::Gauge,
        value: |target| target.resident,
    },
    Instrument {
        prometheus: "leakscope_target_live_heap_bytes",
        otlp: "leakscope.target.live_heap",
        unit: "By",
        help: "Live bytes of the heap, of programs under leakscope run.",
        kind: Kind::Gauge,
        value: |target| target.live_heap,
    },
    Instrument {
        prometheus: "leakscope_target_growth_bytes_per_second",
        otlp: "leakscope.target.growth",
        unit: "By/s",
        help: "Rate of a growth of memory that was judged a leak, else 0.",
        kind: Kind::Gauge,
        value: |target| Some(target.per_hour.unwrap_or(0.0) / 3600.0),
    },
    Instrument {
        prometheus: "leakscope_target_growing",
        otlp: "leakscope.target.growing",
        unit: "1",
        help: "1 when something of the target was judged to grow without end, else 0.",
        kind: Kind::Gauge,
        value: |target| Some(f64::from(u8::from(target.verdict == Verdict::Growing))),
    },
    Instrument {
        prometheus: "leakscope_target_limit_bytes",
        otlp: "leakscope.target.limit",
        unit: "By",
        help: "What the memory must not reach.",
        kind: Kind::Gauge,
        value: |target| target.limit,
    },
    Instrument {
        prometheus: "leakscope_target_until_limit_seconds",
        otlp: "leakscope.target.until_limit",
        unit: "s",
        help: "Time until growing memory meets its limit; absent when it does not grow.",
        kind: Kind::Gauge,
        value: |target| target.hours_left.map(|hours| hours * 3600.0),
    },
    Instrument {
        prometheus: "leakscope_target_arena_regions",
        otlp: "leakscope.target.arena_regions",
        unit: "{region}",
        help: "Regions of 64 MiB that glibc has for the arenas of threads; absent as the parts are.",
        kind: Kind::Gauge,
        value: |target| target.arenas,
    },
    Instrument {
        prometheus: "leakscope_target_threads",
        otlp: "leakscope.target.threads",
        unit: "{thread}",
        help: "Threads.",
        kind: Kind::Gauge,
        value: |target| target.threads,
    },
    Instrument {
        prometheus: "leakscope_target_open_fds",
        otlp: "leakscope.target.open_file_descriptors",
        unit: "{descriptor}",
        help: "Open descriptors.",
        kind: Kind::Gauge,
        value: |target| target.descriptors,
    },
    Instrument {
        prometheus: "leakscope_target_restarts_total",
        otlp: "leakscope.target.restarts",
        unit: "{restart}",
        help: "How often the target has been restarted or run another program since it is watched.",
        kind: Kind::Counter,
        value: |target| Some(f64::from(target.restarts)),
    },
];

/// Of each part of each target's memory; the parts are another label, and together they are what is resident.
pub(crate) const OF_PART: Instrument<PartView> = Instrument {
    prometheus: "leakscope_target_part_bytes",
    otlp: "leakscope.target.part",
    unit: "By",
    help: "What resident memory is made of, when it was looked at last; absent when that is long ago.",
    kind: Kind::Gauge,
    value: |part| Some(part.bytes),
};

/// Of the monitor itself.
pub(crate) const OF_MONITOR: &[Instrument<Board>] = &[
    Instrument {
        prometheus: "leakscope_open_alarms",
        otlp: "leakscope.monitor.open_alarms",
        unit: "{alarm}",
        help: "Alarms that are open.",
        kind: Kind::Gauge,
        value: |board| Some(board.alarms.len() as f64),
    },
    Instrument {
        prometheus: "leakscope_undelivered_notices",
        otlp: "leakscope.monitor.undelivered",
        unit: "{notice}",
        help: "Notices that wait for their channel.",
        kind: Kind::Gauge,
        value: |board| Some(board.undelivered as f64),
    },
    Instrument {
        prometheus: "leakscope_passes_total",
        otlp: "leakscope.monitor.passes",
        unit: "{pass}",
        help: "Passes since the daemon's start.",
        kind: Kind::Counter,
        value: |board| Some(board.passes as f64),
    },
    Instrument {
        prometheus: "leakscope_last_pass_duration_seconds",
        otlp: "leakscope.monitor.last_pass_duration",
        unit: "s",
        help: "What the last pass took.",
        kind: Kind::Gauge,
        value: |board| Some(board.pass_seconds),
    },
    Instrument {
        prometheus: "leakscope_last_pass_timestamp_seconds",
        otlp: "leakscope.monitor.last_pass_time",
        unit: "s",
        help: "When the last pass was, since the epoch.",
        kind: Kind::Gauge,
        value: |board| Some(board.at as f64),
    },
];
