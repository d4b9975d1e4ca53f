//! The board as OTLP metrics over HTTP, in protobuf. Source: opentelemetry-proto 1.3, `metrics/v1/metrics.proto`,
//! `common/v1/common.proto`, `collector/metrics/v1/metrics_service.proto`; OTLP specification 1.3, "OTLP/HTTP".
//!
//! The messages are written down with their numbered fields, as far as gauges and sums of doubles need them: the crates of
//! OpenTelemetry bring an SDK with a runtime, of which a push a minute needs nothing. Names are bounded as for Prometheus.
//! What cannot be pushed is not kept: the next push has newer values.

use std::time::Duration;

use prost::Message;

use crate::instruments::{Instrument, Kind, OF_MONITOR, OF_PART, OF_TARGET};
use crate::view::Board;

/// How long a push may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Cumulative, of `AggregationTemporality`.
const CUMULATIVE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(string, tag = "3")]
    unit: String,
    #[prost(oneof = "Data", tags = "5, 7")]
    data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Data {
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Sum(Sum),
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    points: Vec<Point>,
}

#[derive(Clone, PartialEq, Message)]
struct Sum {
    #[prost(message, repeated, tag = "1")]
    points: Vec<Point>,
    #[prost(int32, tag = "2")]
    temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Point {
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<KeyValue>,
    #[prost(fixed64, tag = "2")]
    start_ns: u64,
    #[prost(fixed64, tag = "3")]
    at_ns: u64,
    #[prost(double, optional, tag = "4")]
    value: Option<f64>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { text: Some(value.to_owned()) }) }
}

/// The body of a push; `start` is when the daemon began to count, seconds since the epoch.
pub fn encode(board: &Board, start: u64) -> Vec<u8> {
    let point = |instrument_kind: Kind, value: f64, attributes: Vec<KeyValue>| Point {
        attributes,
        start_ns: if instrument_kind == Kind::Counter { start * 1_000_000_000 } else { 0 },
        at_ns: board.at * 1_000_000_000,
        value: Some(value),
    };
    let mut metrics = Vec::new();
    for instrument in OF_TARGET {
        let points = board.targets.iter().take(crate::prometheus::MOST_NAMES).filter_map(|target| {
            Some(point(instrument.kind, (instrument.value)(target)?, vec![attribute("target", &target.id)]))
        });
        metrics.extend(metric(instrument, points.collect()));
    }
    let parts = board.targets.iter().take(crate::prometheus::MOST_NAMES).flat_map(|target| {
        target.parts.iter().filter_map(|part| {
            let attributes = vec![attribute("target", &target.id), attribute("part", part.part)];
            Some(point(OF_PART.kind, (OF_PART.value)(part)?, attributes))
        })
    });
    metrics.extend(metric(&OF_PART, parts.collect()));
    for instrument in OF_MONITOR {
        let points = (instrument.value)(board).map(|value| point(instrument.kind, value, Vec::new()));
        metrics.extend(metric(instrument, points.into_iter().collect()));
    }
    let version = env!("CARGO_PKG_VERSION");
    let resource = Resource {
        attributes: vec![
            attribute("service.name", "leakscope-monitor"),
            attribute("service.version", version),
            attribute("host.name", &board.machine),
        ],
    };
    let scope = Scope { name: "leakscope".to_owned(), version: version.to_owned() };
    let scopes = vec![ScopeMetrics { scope: Some(scope), metrics }];
    Request { resources: vec![ResourceMetrics { resource: Some(resource), scopes }] }.encode_to_vec()
}

fn metric<T>(instrument: &Instrument<T>, points: Vec<Point>) -> Option<Metric> {
    if points.is_empty() {
        return None;
    }
    let data = match instrument.kind {
        Kind::Gauge => Data::Gauge(Gauge { points }),
        Kind::Counter => Data::Sum(Sum { points, temporality: CUMULATIVE, is_monotonic: true }),
    };
    Some(Metric {
        name: instrument.otlp.to_owned(),
        description: instrument.help.to_owned(),
        unit: instrument.unit.to_owned(),
        data: Some(data),
    })
}

/// Sends a body to a collector, `http://HOST:4318/v1/metrics`; `token` goes as a bearer token.
///
/// # Errors
/// Why it was not taken, without the address's query, which may hold a token.
pub fn push(url: &str, token: Option<&str>, body: &[u8]) -> Result<(), String> {
    let shown = url.split(['?', '#']).next().unwrap_or_default();
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into();
    let mut request = agent.post(url).header("Content-Type", "application/x-protobuf");
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let answer =
        request.send(body).map_err(|error| format!("otlp {shown}: {error}; the next push has newer values"))?;
    match answer.status().as_u16() {
        200..300 => Ok(()),
        status => Err(format!("otlp {shown}: it answered {status}, expected 200; look at the collector's log")),
    }
}
