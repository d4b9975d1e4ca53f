//! A stretch on the wire: JSON, compressed by zstd. Pure.
//!
//! ```json
//! { "version": 1, "stream": "32 hexadecimal digits", "after": 100, "upto": 120,
//!   "targets": ["name:nginx"], "ticks": [[110, [[0, 3, [5242880, null, 0]]]], [120, []]],
//!   "events": [{"at": 110, "target": "name:nginx", "kind": "restart", "text": "..."}], "found": [] }
//! ```
//!
//! A tick is its time and its samples; a sample is the target's place in the list, its life, and its values in the order of
//! the history. An agent that knows fewer metrics sends fewer; what a newer one has more is left out.
//!
//! Decoding trusts nothing: not the compressed length, not the length it says to have, no place in a list, no order, and no
//! name, which anybody on the agent's machine can choose.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use leakscope_history::{Event, Found, METRICS, Stretch, TargetSample, Tick, Values};
use serde::{Deserialize, Serialize};

use crate::error::CollectError;

/// The most bytes of a body, compressed.
pub const MOST_BYTES: usize = 2 << 20;
/// The most bytes of a body's text.
pub const MOST_TEXT: usize = 16 << 20;
/// The most samples that an agent puts into one body: even with long values their text stays far below [`MOST_TEXT`].
pub const MOST_SAMPLES: usize = 20_000;
/// What zstd may keep in memory to decompress: 8 MiB; what the default level needs is a quarter of that.
const WINDOW_LOG: u32 = 23;
const LEVEL: i32 = 3;
const VERSION: u32 = 1;
/// Longest name and one-line text that is kept, in characters.
pub(crate) const LONGEST_NAME: usize = 200;
pub(crate) const LONGEST_TEXT: usize = 2000;
/// Most frames of a stack.
pub(crate) const MOST_FRAMES: usize = 256;

type WireSample = (usize, u16, Vec<Option<u64>>);

#[derive(Serialize, Deserialize)]
struct Body {
    version: u32,
    stream: String,
    after: u64,
    upto: u64,
    targets: Vec<String>,
    ticks: Vec<(u64, Vec<WireSample>)>,
    events: Vec<WireEvent>,
    found: Vec<WireFound>,
}

#[derive(Serialize, Deserialize)]
struct WireEvent {
    at: u64,
    target: String,
    kind: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct WireFound {
    target: String,
    source: String,
    fingerprint: String,
    title: String,
    stack: Vec<String>,
    bytes: u64,
    blocks: u64,
    first: u64,
    last: u64,
}

/// The body of a stretch.
///
/// # Errors
/// When zstd has no memory.
pub fn encode(stream: &str, stretch: &Stretch) -> Result<Vec<u8>, CollectError> {
    let mut targets: Vec<String> = Vec::new();
    let mut places = HashMap::new();
    let mut sample = |sample: &TargetSample| -> WireSample {
        let place = *places.entry(sample.target.clone()).or_insert_with(|| {
            targets.push(sample.target.clone());
            targets.len() - 1
        });
        let known = sample.values.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        (place, sample.life, sample.values[..known].to_vec())
    };
    let ticks = stretch.ticks.iter().map(|tick| (tick.at, tick.samples.iter().map(&mut sample).collect())).collect();
    let events = stretch.events.iter().map(|event| WireEvent {
        at: event.at,
        target: event.target.clone(),
        kind: event.kind.clone(),
        text: event.text.clone(),
    });
    let found = stretch.found.iter().map(|one| WireFound {
        target: one.target.clone(),
        source: one.source.clone(),
        fingerprint: one.fingerprint.clone(),
        title: one.title.clone(),
        stack: one.stack.clone(),
        bytes: one.bytes,
        blocks: one.blocks,
        first: one.first_at,
        last: one.last_at,
    });
    let body = Body {
        version: VERSION,
        stream: stream.to_owned(),
        after: stretch.after,
        upto: stretch.upto,
        ticks,
        targets,
        events: events.collect(),
        found: found.collect(),
    };
    let text = serde_json::to_vec(&body).map_err(|error| malformed(error.to_string()))?;
    compress(&text)
}

/// A body of a text.
pub(crate) fn compress(text: &[u8]) -> Result<Vec<u8>, CollectError> {
    zstd::bulk::compress(text, LEVEL).map_err(|error| malformed(error.to_string()))
}

/// The stream and the stretch of a body; `now` is the collector's time.
///
/// # Errors
/// When it is no stretch.
pub fn decode(bytes: &[u8], now: u64) -> Result<(String, Stretch), CollectError> {
    let body: Body = serde_json::from_slice(&text(bytes)?).map_err(|error| malformed(error.to_string()))?;
    if body.version != VERSION {
        return Err(malformed(format!("version {}; this build reads {VERSION}; upgrade the older side", body.version)));
    }
    if !is_stream(&body.stream) {
        return Err(malformed("`stream` must be 32 hexadecimal digits".to_owned()));
    }
    if body.upto < body.after || body.upto > now.saturating_add(FUTURE_SECONDS) {
        return Err(malformed(format!(
            "it says to reach from {} to {}, and here it is {now}; set the clock of one of the two machines",
            body.after, body.upto
        )));
    }
    let targets: Vec<String> = body.targets.iter().map(|name| line(name, LONGEST_NAME)).collect();
    // Names that differ in harmful characters alone are one name here.
    let mut names = HashSet::new();
    if let Some(twice) = targets.iter().find(|name| !names.insert(name.as_str())) {
        return Err(malformed(format!("two targets are called `{twice}`")));
    }
    let mut ticks = Vec::with_capacity(body.ticks.len());
    let mut before = body.after;
    for (at, samples) in body.ticks {
        if at <= before || at > body.upto {
            return Err(malformed(format!("a tick at {at} stands after {before} in what reaches to {}", body.upto)));
        }
        before = at;
        ticks.push(Tick { at, samples: decode_samples(samples, &targets)? });
    }
    let inside = |at: u64| at > body.after && at <= body.upto;
    let events = body.events.into_iter().filter(|event| inside(event.at)).map(|event| Event {
        at: event.at,
        target: line(&event.target, LONGEST_NAME),
        kind: line(&event.kind, LONGEST_NAME),
        text: line(&event.text, LONGEST_TEXT),
    });
    let found = body.found.into_iter().filter(|one| inside(one.last)).map(|one| Found {
        target: line(&one.target, LONGEST_NAME),
        source: line(&one.source, LONGEST_NAME),
        fingerprint: line(&one.fingerprint, LONGEST_NAME),
        title: line(&one.title, LONGEST_TEXT),
        stack: one.stack.iter().take(MOST_FRAMES).map(|frame| line(frame, LONGEST_TEXT)).collect(),
        bytes: one.bytes,
        blocks: one.blocks,
        first_at: one.first.min(one.last),
        last_at: one.last,
    });
    let stretch =
        Stretch { after: body.after, upto: body.upto, ticks, events: events.collect(), found: found.collect() };
    Ok((body.stream, stretch))
}

/// A clock may be wrong by a day; what lies further ahead would keep all that is true out.
const FUTURE_SECONDS: u64 = 86_400;

fn decode_samples(samples: Vec<WireSample>, targets: &[String]) -> Result<Vec<TargetSample>, CollectError> {
    let mut found: Vec<TargetSample> = Vec::with_capacity(samples.len());
    let mut seen = vec![false; targets.len()];
    for (place, life, given) in samples {
        let target = targets
            .get(place)
            .ok_or_else(|| malformed(format!("a sample of target {place}, of which there are {}", targets.len())))?;
        if std::mem::replace(&mut seen[place], true) {
            return Err(malformed(format!("target {place} stands twice in one tick")));
        }
        let mut values = Values::default();
        for (value, given) in values.iter_mut().zip(given.iter().take(METRICS)) {
            *value = *given;
        }
        found.push(TargetSample { target: target.clone(), life, values });
    }
    Ok(found)
}

/// The text of a body, which is no longer than it may be, whatever the frame says of itself.
pub(crate) fn text(bytes: &[u8]) -> Result<Vec<u8>, CollectError> {
    let wrong = |error: std::io::Error| malformed(format!("zstd: {error}"));
    let mut decoder = zstd::stream::read::Decoder::new(bytes).map_err(wrong)?;
    decoder.window_log_max(WINDOW_LOG).map_err(wrong)?;
    let mut text = Vec::new();
    decoder.take(MOST_TEXT as u64 + 1).read_to_end(&mut text).map_err(wrong)?;
    if text.len() > MOST_TEXT {
        return Err(malformed(format!("it decompresses to more than {MOST_TEXT} bytes")));
    }
    Ok(text)
}

/// Whether a text can be a stream's name.
pub(crate) fn is_stream(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A text in one line, of harmless characters, and not longer than it may be.
pub(crate) fn line(text: &str, longest: usize) -> String {
    let harmless = |c: char| {
        let turns =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || turns { '\u{fffd}' } else { c }
    };
    text.chars().take(longest).map(harmless).collect()
}

pub(crate) fn malformed(reason: String) -> CollectError {
    CollectError::Malformed { reason }
}
