//! Who saw a finding, for documents on what several tools saw: one fingerprint is one finding, whoever tells of it.

use std::collections::{BTreeMap, HashMap};

use leakscope_findings::Fingerprint;
use leakscope_findings::recording::Witness;
use leakscope_findings::witness::Sight;
use leakscope_model::Tool;
use serde_json::{Value, json};

use crate::Process;
use crate::escape::terminal;
use crate::finding::Finding;

/// What tells findings apart across tools: whether it is blocks (else an error), and the fingerprint.
pub(crate) type Identity = (bool, Fingerprint);

/// Who saw which finding; nothing where our own tool is the only one.
pub(crate) struct Witnesses<'a>(HashMap<Identity, BTreeMap<&'a Witness, Sight>>);

impl<'a> Witnesses<'a> {
    /// Those of all processes. What a rule hides nobody saw.
    pub fn of(processes: &[Process<'a>]) -> Self {
        let mut found = Self(HashMap::new());
        if processes.iter().all(|process| process.analysis.witness.tool == Tool::Leakscope) {
            return found;
        }
        for analysis in processes.iter().map(|process| process.analysis) {
            let witness = &analysis.witness;
            for record in analysis.records.iter().filter(|record| record.suppressed_by.is_none()) {
                let sight = Sight { bytes: record.bytes, count: record.blocks, kind: record.kind };
                found.add((true, record.fingerprint), witness, &sight);
            }
            let misuses = analysis.shown_misuses().map(|error| (error.fingerprint, error.count));
            let errors = analysis.shown_memory_errors().map(|error| (error.fingerprint, error.count));
            for (fingerprint, count) in misuses.chain(errors) {
                found.add((false, fingerprint), witness, &Sight { bytes: 0, count, kind: None });
            }
        }
        found
    }

    fn add(&mut self, identity: Identity, witness: &'a Witness, sight: &Sight) {
        let known = self.0.entry(identity).or_default().entry(witness).or_default();
        known.bytes = known.bytes.saturating_add(sight.bytes);
        known.count = known.count.saturating_add(sight.count);
        known.kind = known.kind.max(sight.kind);
    }

    /// Those of a finding, by name.
    pub fn of_finding(&self, finding: &Finding<'_>) -> Vec<(&'a Witness, Sight)> {
        let found = self.0.get(&finding.identity()).into_iter().flatten();
        found.map(|(witness, sight)| (*witness, sight.clone())).collect()
    }
}

/// `seen by AddressSanitizer, leakscope and Valgrind Memcheck 3.19.0`, not escaped; `None` where it goes without saying.
pub(crate) fn words(finding: &Finding<'_>) -> Option<String> {
    let names: Vec<String> = finding.witnesses.iter().map(|(witness, _)| witness.to_string()).collect();
    let (last, front) = names.split_last()?;
    Some(if front.is_empty() { format!("seen by {last}") } else { format!("seen by {} and {last}", front.join(", ")) })
}

/// Every witness with what it saw, for JSON formats.
pub(crate) fn values(finding: &Finding<'_>) -> Vec<Value> {
    let value = |(witness, sight): &(&Witness, Sight)| {
        let mut value = json!({ "tool": witness.tool.name() });
        if !witness.version.is_empty() {
            value["version"] = json!(terminal(&witness.version));
        }
        if finding.rule.is_of_blocks() {
            value["bytes"] = json!(sight.bytes);
            value["blocks"] = json!(sight.count);
            value["kind"] = json!(sight.kind.map_or("live", |kind| kind.option_word()));
        } else {
            value["count"] = json!(sight.count);
        }
        value
    };
    finding.witnesses.iter().map(value).collect()
}
