//! `VALGRIND_MONITOR_COMMAND`: the commands of Memcheck's gdb server that tests and programs use.

use leakscope_ledger::events::asked;
use leakscope_model::{CheckTrigger, ErrorKind};
use leakscope_translate::Engine;

use crate::engine::Memcheck;
use crate::probe;

/// A number in C's spelling.
fn number(word: &str) -> Option<u64> {
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

impl Memcheck {
    /// Carries a command out; 1 when it is not known.
    pub(super) fn monitor_command(&mut self, engine: &mut Engine, text: u64) -> u64 {
        let Some(text) = probe::text(text, 4096) else { return 1 };
        let text = String::from_utf8_lossy(&text).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let range = || {
            let start = number(words.get(1)?)?;
            Some((start, words.get(2).and_then(|word| number(word)).unwrap_or(1)))
        };
        let is =
            |name: &str, least: usize| words.first().is_some_and(|word| word.len() >= least && name.starts_with(*word));
        let guest = engine.guest().clone();
        if is("leak_check", 1) {
            let has = |word: &str| words[1..].iter().any(|given| given.len() > 2 && word.starts_with(given));
            let how = if has("summary") { asked::SUMMARY } else { asked::FULL };
            let delta = if has("any") {
                0
            } else if has("changed") {
                asked::CHANGED
            } else {
                asked::ADDED
            };
            self.check_leaks(engine, CheckTrigger::OnDemand, 0, how | delta);
            return 0;
        }
        if let Some((start, bytes)) = range() {
            if is("make_memory", 2) || is("xb", 2) || is("get_vbits", 1) {
                return u64::from(!self.make_memory(&words));
            }
            if is("check_memory", 1) {
                if let Some(bad) = crate::monitor::first_bad(start, bytes) {
                    self.walk_request(engine);
                    let message = "Unaddressable byte(s) found during client check request".to_owned();
                    self.report(&guest, ErrorKind::ClientCheck, "client", message, Some(bad));
                }
                return 0;
            }
            if is("who_points_at", 1) || is("block_list", 1) {
                return 0;
            }
        }
        let known = ["help", "v.info", "v.set", "v.wait", "v.kill", "v.do", "v.clo", "v.translate", "info", "set"];
        let first = words.first().copied().unwrap_or_default();
        if known.contains(&first) {
            return 0;
        }
        if words.first().is_some_and(|word| matches!(*word, "make_memory" | "who_points_at" | "block_list")) {
            return u64::from(!self.make_memory(&words));
        }
        1
    }

    /// `make_memory noaccess|undefined|defined|Definedifaddressable ADDRESS [LENGTH]`
    fn make_memory(&mut self, words: &[&str]) -> bool {
        let (Some(&how), Some(start)) = (words.get(1), words.get(2).and_then(|word| number(word))) else {
            return false;
        };
        let bytes = words.get(3).and_then(|word| number(word)).unwrap_or(1);
        if start.saturating_add(bytes) > leakscope_translate::GUEST_END {
            return false;
        }
        match how.bytes().next() {
            Some(b'n') => crate::engine::shadow().forbid(start, bytes),
            Some(b'u' | b'd') => crate::engine::shadow().allow(start, bytes),
            Some(b'D') => {}
            _ => return false,
        }
        true
    }
}
