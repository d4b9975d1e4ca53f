//! The tree of call paths, outermost function first. Paths of equal functions are one, wherever their lines are.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::Process;
use crate::escape::terminal;
use crate::finding;
use crate::profile::{Code, Metric, Profile};

/// A function in its call path.
pub(super) struct Node {
    /// Name for people, without what a terminal would obey.
    pub name: String,
    /// Its source file as recorded; empty when unknown.
    pub file: String,
    /// Its module's path, not escaped.
    pub module: String,
    /// The node of its caller; node 0 is the root, which is its own.
    pub parent: usize,
    /// Steps from the root.
    pub depth: usize,
    /// Whether its callees are on the list.
    pub open: bool,
    amounts: [u64; Metric::ALL.len()],
    /// By metric the line of the call in it that leads to the largest site, and what that has.
    lines: [(u32, u64); Metric::ALL.len()],
    children: Vec<usize>,
}

/// All nodes.
pub(super) struct Tree {
    /// By number; parents come before their children.
    pub nodes: Vec<Node>,
}

fn index(metric: Metric) -> usize {
    Metric::ALL.iter().position(|&each| each == metric).unwrap_or(0)
}

/// What the view is about.
pub(super) fn title(processes: &[Process<'_>]) -> String {
    match processes {
        [] => "nothing was recorded".to_owned(),
        [one] => terminal(&format!("{} ({})", finding::program(one.analysis), one.analysis.process.pid)),
        [one, ..] => terminal(&format!("{} and {} more", finding::program(one.analysis), processes.len() - 1)),
    }
}

impl Tree {
    /// The tree of all sites.
    pub fn new(processes: &[Process<'_>]) -> Self {
        let root = Code {
            name: "all".to_owned(),
            file: String::new(),
            line: 0,
            column: 0,
            module: String::new(),
            linkage_name: String::new(),
        };
        let mut tree = Self { nodes: vec![node(&root, 0, 0)] };
        let mut known: HashMap<(usize, String), usize> = HashMap::new();
        for &process in processes {
            let profile = Profile::new(process);
            let codes: Vec<Vec<Code>> =
                (0..profile.recorded().locations.len()).map(|location| profile.codes(location as u32)).collect();
            for sample in &profile.samples {
                let amounts = Metric::ALL.map(|metric| sample.amount(metric));
                let hook = profile.hook(sample.record);
                let of = |&location: &u32| codes.get(location as usize).map(Vec::as_slice).unwrap_or_default();
                let path = sample.stack.iter().rev().flat_map(|location| of(location).iter().rev());
                let mut at = 0;
                tree.add(0, &amounts);
                for code in path.chain([&hook]) {
                    let next = tree.nodes.len();
                    let number = *known.entry((at, code.name.clone())).or_insert(next);
                    if number == next {
                        let depth = tree.nodes[at].depth + 1;
                        tree.nodes.push(node(code, at, depth));
                        tree.nodes[at].children.push(number);
                    }
                    tree.add(number, &amounts);
                    for ((line, most), &amount) in tree.nodes[number].lines.iter_mut().zip(&amounts) {
                        if amount > *most {
                            (*line, *most) = (code.line, amount);
                        }
                    }
                    at = number;
                }
            }
        }
        tree
    }

    fn add(&mut self, node: usize, amounts: &[u64]) {
        for (sum, amount) in self.nodes[node].amounts.iter_mut().zip(amounts) {
            *sum = sum.saturating_add(*amount);
        }
    }

    /// What `node` and its callees have of a metric.
    pub fn amount(&self, node: usize, metric: Metric) -> u64 {
        self.nodes[node].amounts[index(metric)]
    }

    /// The line of the call in a function that matters most for a metric, 0 when unknown.
    pub fn line(&self, node: usize, metric: Metric) -> u32 {
        self.nodes[node].lines[index(metric)].0
    }

    /// What there is of a metric.
    pub fn total(&self, metric: Metric) -> u64 {
        self.amount(0, metric)
    }

    /// The callees of a node that have some of a metric, the largest first.
    fn children(&self, node: usize, metric: Metric) -> Vec<usize> {
        let some = self.nodes[node].children.iter().copied().filter(|&child| self.amount(child, metric) > 0);
        let mut children: Vec<usize> = some.collect();
        children.sort_by_key(|&child| (Reverse(self.amount(child, metric)), child));
        children
    }

    /// Whether opening it would show something.
    pub fn has_children(&self, node: usize, metric: Metric) -> bool {
        self.nodes[node].children.iter().any(|&child| self.amount(child, metric) > 0)
    }

    /// Opens a node, and on as long as there is one way only.
    pub fn open(&mut self, node: usize, metric: Metric) {
        let mut at = node;
        loop {
            self.nodes[at].open = true;
            match self.children(at, metric).as_slice() {
                [only] => at = *only,
                _ => return,
            }
        }
    }

    /// Closes all but the way to where it first parts.
    pub fn open_start(&mut self, metric: Metric) {
        for node in &mut self.nodes {
            node.open = false;
        }
        self.open(0, metric);
    }

    /// Opens all callers of a node.
    pub fn open_to(&mut self, node: usize) {
        let mut at = node;
        while at != 0 {
            at = self.nodes[at].parent;
            self.nodes[at].open = true;
        }
    }

    /// The nodes on the list, from top to bottom.
    pub fn rows(&self, metric: Metric) -> Vec<usize> {
        self.list(metric, |node| node.open)
    }

    /// All nodes of a metric in the order of the list.
    pub fn all(&self, metric: Metric) -> Vec<usize> {
        self.list(metric, |_| true)
    }

    fn list(&self, metric: Metric, is_open: impl Fn(&Node) -> bool) -> Vec<usize> {
        let mut rows = Vec::new();
        let mut waiting = if self.total(metric) > 0 { vec![0] } else { Vec::new() };
        while let Some(node) = waiting.pop() {
            rows.push(node);
            if is_open(&self.nodes[node]) {
                waiting.extend(self.children(node, metric).into_iter().rev());
            }
        }
        rows
    }
}

fn node(code: &Code, parent: usize, depth: usize) -> Node {
    Node {
        name: terminal(&code.name),
        file: code.file.clone(),
        module: code.module.clone(),
        parent,
        depth,
        open: false,
        amounts: [0; Metric::ALL.len()],
        lines: [(0, 0); Metric::ALL.len()],
        children: Vec::new(),
    }
}
