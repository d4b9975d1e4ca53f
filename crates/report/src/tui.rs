//! The sites of a recording in a terminal: a tree to walk through, and the source of what is selected.
//!
//! This holds the state, takes keys and draws into a frame; the terminal itself is the caller's. Keys are those of htop
//! (arrows, `+` and `-`, F1, F3, F6, F10) and of less (`j`, `k`, space, `b`, `g`, `G`, `/`, `n`, `N`, `q`).

mod draw;
mod tree;

use std::collections::HashMap;

use crate::Process;
use crate::profile::Metric;
use tree::Tree;

/// A key, as far as one has a meaning here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// Arrow to the left.
    Left,
    /// Arrow to the right.
    Right,
    /// Page up.
    PageUp,
    /// Page down.
    PageDown,
    /// Home.
    Home,
    /// End.
    End,
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// Backspace.
    Backspace,
    /// A function key.
    Function(u8),
    /// A letter.
    Letter(char),
    /// Control and C.
    Interrupt,
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Draw again and wait for a key.
    Go,
    /// The user is done.
    Quit,
}

enum Mode {
    Walk,
    /// With what has been typed so far.
    Search(String),
    Help,
}

/// Gives the text of a source file, if it is at hand.
type Read<'a> = &'a mut dyn FnMut(&str) -> Option<String>;

/// The state of the view.
pub struct Tui<'a> {
    tree: Tree,
    title: String,
    metric: Metric,
    mode: Mode,
    /// Numbers of the nodes on the list, from top to bottom.
    rows: Vec<usize>,
    selected: usize,
    /// First row on the screen.
    top: usize,
    /// Rows on the screen, as last drawn.
    page: usize,
    searched: String,
    message: String,
    read: Read<'a>,
    sources: HashMap<String, Option<Vec<String>>>,
}

impl<'a> Tui<'a> {
    /// The view of these processes, on `metric` if there is any of it.
    pub fn new(processes: &[Process<'_>], metric: Metric, read: Read<'a>) -> Self {
        let tree = Tree::new(processes);
        let start = [metric, Metric::Live, Metric::Total].into_iter().find(|&metric| tree.total(metric) > 0);
        let mut tui = Self {
            title: tree::title(processes),
            tree,
            metric: start.unwrap_or(metric),
            mode: Mode::Walk,
            rows: Vec::new(),
            selected: 0,
            top: 0,
            page: 1,
            searched: String::new(),
            message: String::new(),
            read,
            sources: HashMap::new(),
        };
        tui.start_metric();
        tui
    }

    /// Takes a key.
    pub fn key(&mut self, key: Key) -> Next {
        if key == Key::Interrupt {
            return Next::Quit;
        }
        self.message.clear();
        match std::mem::replace(&mut self.mode, Mode::Walk) {
            Mode::Walk => return self.walk(key),
            Mode::Search(words) => self.type_search(key, words),
            // Any key leaves the help.
            Mode::Help => {}
        }
        Next::Go
    }

    fn walk(&mut self, key: Key) -> Next {
        let last = self.rows.len().saturating_sub(1);
        match key {
            Key::Function(10) | Key::Letter('q' | 'Q') => return Next::Quit,
            Key::Function(1) | Key::Letter('h' | '?') => self.mode = Mode::Help,
            Key::Function(3) | Key::Letter('/') => self.mode = Mode::Search(String::new()),
            Key::Function(6) | Key::Letter('m') => self.next_metric(),
            Key::Letter('n') => self.find(true),
            Key::Letter('N') => self.find(false),
            Key::Up | Key::Letter('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Letter('j') => self.selected = (self.selected + 1).min(last),
            Key::PageUp | Key::Letter('b') => self.selected = self.selected.saturating_sub(self.page),
            Key::PageDown | Key::Letter(' ' | 'f') => self.selected = (self.selected + self.page).min(last),
            Key::Home | Key::Letter('g') => self.selected = 0,
            Key::End | Key::Letter('G') => self.selected = last,
            Key::Right | Key::Letter('+' | 'l') => self.open(),
            Key::Left | Key::Letter('-') => self.close(),
            Key::Enter => match self.current() {
                Some(node) if self.tree.nodes[node].open => self.close(),
                _ => self.open(),
            },
            _ => {}
        }
        Next::Go
    }

    fn type_search(&mut self, key: Key, mut words: String) {
        match key {
            Key::Escape => return,
            Key::Enter => {
                if !words.is_empty() {
                    self.searched = words;
                }
                self.find(true);
                return;
            }
            Key::Backspace => _ = words.pop(),
            Key::Letter(letter) => words.push(letter),
            _ => {}
        }
        self.mode = Mode::Search(words);
    }

    fn current(&self) -> Option<usize> {
        self.rows.get(self.selected).copied()
    }

    fn start_metric(&mut self) {
        self.tree.open_start(self.metric);
        self.selected = 0;
        self.top = 0;
        self.list();
    }

    fn next_metric(&mut self) {
        let at = Metric::ALL.iter().position(|&metric| metric == self.metric).unwrap_or(0);
        self.metric = Metric::ALL[(at + 1) % Metric::ALL.len()];
        self.start_metric();
    }

    /// Makes the list anew; the selection stays on its node.
    fn list(&mut self) {
        let current = self.current();
        self.rows = self.tree.rows(self.metric);
        if let Some(at) = current.and_then(|node| self.rows.iter().position(|&row| row == node)) {
            self.selected = at;
        }
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
    }

    fn open(&mut self) {
        let Some(node) = self.current() else { return };
        if self.tree.nodes[node].open || !self.tree.has_children(node, self.metric) {
            // What is open already leads on to its first child.
            let has_row = self.tree.nodes[node].open && self.selected + 1 < self.rows.len();
            self.selected += usize::from(has_row);
            return;
        }
        self.tree.open(node, self.metric);
        self.list();
    }

    fn close(&mut self) {
        let Some(node) = self.current() else { return };
        if self.tree.nodes[node].open && self.tree.has_children(node, self.metric) {
            self.tree.nodes[node].open = false;
            self.list();
        } else if let Some(at) = self.rows.iter().position(|&row| row == self.tree.nodes[node].parent) {
            self.selected = at;
        }
    }

    /// Goes to the next or previous function with the searched words in its name, wherever it is in the tree.
    fn find(&mut self, forward: bool) {
        let (Some(current), false) = (self.current(), self.searched.is_empty()) else { return };
        let words = self.searched.to_lowercase();
        let order = self.tree.all(self.metric);
        let at = order.iter().position(|&node| node == current).unwrap_or(0);
        let matches = |&node: &usize| self.tree.nodes[node].name.to_lowercase().contains(&words);
        let (before, after) = (&order[..at], &order[(at + 1).min(order.len())..]);
        let found = if forward {
            after.iter().chain(before).copied().find(|node| matches(node))
        } else {
            before.iter().rev().chain(after.iter().rev()).copied().find(|node| matches(node))
        };
        let Some(node) = found else {
            let here = matches(&current);
            self.message = if here { "no other match".to_owned() } else { format!("not found: {}", self.searched) };
            return;
        };
        self.tree.open_to(node);
        self.rows = self.tree.rows(self.metric);
        self.selected = self.rows.iter().position(|&row| row == node).unwrap_or(self.selected);
    }

    /// Lines of a source file without what a terminal would obey.
    fn source(&mut self, path: &str) -> Option<&[String]> {
        if !self.sources.contains_key(path) {
            let text = (self.read)(path);
            let lines = text.map(|text| {
                text.lines().map(|line| crate::escape::terminal(&line.replace('\t', "    "))).collect::<Vec<_>>()
            });
            self.sources.insert(path.to_owned(), lines);
        }
        self.sources.get(path).and_then(|lines| lines.as_deref())
    }
}
