//! The boards of agents: what each machine's monitor says of its targets now. Only the newest one of each is kept, as a file
//! beside its history; what was is in the history.
//!
//! A board is made by another machine: its size is bounded by the wire, its texts are cleaned, and its name is the one that
//! its token has here.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use leakscope_alerts::Finding;
use leakscope_board::{Board, MachineView, Machines};

use crate::error::CollectError;
use crate::shelf::{history_of, machines};
use crate::tokens::is_machine_name;
use crate::wire::{LONGEST_NAME, LONGEST_TEXT, MOST_BYTES, MOST_FRAMES, compress, line, malformed, text};

/// Points of a sparkline that are kept.
const MOST_POINTS: usize = 256;
/// Lines and pieces of evidence of an alarm that are kept.
const MOST_LINES: usize = 200;

/// The body of a board. One that is too long goes without its charts.
///
/// # Errors
/// When it is too long all the same.
pub(crate) fn encode(board: &Board) -> Result<Vec<u8>, CollectError> {
    let packed = |board: &Board| {
        let text = serde_json::to_vec(board).map_err(|error| malformed(error.to_string()))?;
        compress(&text)
    };
    let body = packed(board)?;
    if body.len() <= MOST_BYTES {
        return Ok(body);
    }
    let mut plain = board.clone();
    plain.targets.iter_mut().for_each(|target| target.spark.clear());
    plain.alarms.iter_mut().for_each(|alarm| alarm.series.clear());
    let body = packed(&plain)?;
    if body.len() > MOST_BYTES {
        return Err(malformed(format!("a board of {} targets is too long to be sent", board.targets.len())));
    }
    Ok(body)
}

/// The board of a body.
///
/// # Errors
/// When it is none.
pub(crate) fn decode(bytes: &[u8], machine: &str) -> Result<Board, CollectError> {
    let mut board: Board = serde_json::from_slice(&text(bytes)?).map_err(|error| malformed(error.to_string()))?;
    machine.clone_into(&mut board.machine);
    for target in &mut board.targets {
        target.id = line(&target.id, LONGEST_NAME);
        target.words = line(&target.words, LONGEST_TEXT);
        target.limit_of = target.limit_of.as_deref().map(|words| line(words, LONGEST_NAME));
        target.spark.truncate(MOST_POINTS);
    }
    board.alarms.iter_mut().for_each(clean);
    Ok(board)
}

fn clean(alarm: &mut Finding) {
    for text in [&mut alarm.key, &mut alarm.target] {
        *text = line(text, LONGEST_NAME);
    }
    for text in [&mut alarm.title, &mut alarm.next] {
        *text = line(text, LONGEST_TEXT);
    }
    alarm.details.truncate(MOST_LINES);
    alarm.details.iter_mut().for_each(|text| *text = line(text, LONGEST_TEXT));
    alarm.evidence.truncate(MOST_LINES);
    for one in &mut alarm.evidence {
        for text in [&mut one.source, &mut one.fingerprint] {
            *text = line(text, LONGEST_NAME);
        }
        one.title = line(&one.title, LONGEST_TEXT);
        one.stack.truncate(MOST_FRAMES);
        one.stack.iter_mut().for_each(|frame| *frame = line(frame, LONGEST_TEXT));
    }
    alarm.series.truncate(MOST_POINTS);
}

fn board_of(state: &Path, machine: &str) -> PathBuf {
    state.join("machines").join(machine).join("board.json")
}

/// Keeps the board of a body: the old one or the new one is there, whole, whatever happens.
pub(crate) fn keep(state: &Path, machine: &str, bytes: &[u8]) -> Result<(), CollectError> {
    let board = decode(bytes, machine)?;
    let path = board_of(state, machine);
    let failed = |source: std::io::Error| CollectError::File {
        path: path.clone(),
        what: "keep a machine's board",
        reason: source.to_string(),
    };
    let text = serde_json::to_vec(&board).map_err(|error| malformed(error.to_string()))?;
    let fresh = path.with_extension("new");
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(&fresh, text).map_err(failed)?;
    fs::rename(&fresh, &path).map_err(failed)
}

fn read(state: &Path, machine: &str) -> Option<Board> {
    serde_json::from_slice(&fs::read(board_of(state, machine)).ok()?).ok()
}

/// The machines of a collector's state folder, for its page.
#[derive(Debug)]
pub struct Gallery {
    state: PathBuf,
    /// What was told of each, and of which state of its files.
    told: Mutex<HashMap<String, (SystemTime, Arc<MachineView>)>>,
}

impl Gallery {
    /// Of a collector's state folder.
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), told: Mutex::default() }
    }

    fn view(&self, machine: &str) -> Option<Arc<MachineView>> {
        let changed = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let board = changed(&board_of(&self.state, machine));
        let at = board.or_else(|| changed(&history_of(&self.state, machine)))?;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, view)) = told.get(machine).filter(|(known, _)| *known == at) {
            return Some(Arc::clone(view));
        }
        let seen = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let view = match read(&self.state, machine) {
            Some(board) => MachineView::of(&board, seen),
            // Its monitor is older than boards, or has not sent one yet.
            None => MachineView {
                machine: machine.to_owned(),
                seen,
                interval_seconds: None,
                alarms: 0,
                targets: Vec::new(),
                first: None,
            },
        };
        let view = Arc::new(view);
        told.insert(machine.to_owned(), (at, Arc::clone(&view)));
        Some(view)
    }
}

impl Machines for Gallery {
    fn all(&self) -> Vec<MachineView> {
        let names = machines(&self.state);
        self.told.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.binary_search(name).is_ok());
        names.iter().filter_map(|name| self.view(name)).map(|view| view.as_ref().clone()).collect()
    }

    fn board(&self, machine: &str) -> Option<Board> {
        if !is_machine_name(machine) {
            return None;
        }
        read(&self.state, machine)
    }

    fn history(&self, machine: &str) -> Option<PathBuf> {
        let path = history_of(&self.state, machine);
        (is_machine_name(machine) && path.exists()).then_some(path)
    }
}
