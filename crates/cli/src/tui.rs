//! `leakscope report --tui`: the terminal for the view that the report crate draws.

use std::io::{self, IsTerminal};

use anyhow::{Context, Result, bail};
use leakscope_findings::{Analysis, Recording, analyse};
use leakscope_report::tui::{Key, Next, Tui};
use leakscope_report::{Metric, Process};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::documents::read_source;
use crate::plan::View;

/// Shows a recording until the user leaves.
///
/// # Errors
/// When there is no terminal, or it cannot be used.
pub fn show(recording: &Recording, view: &View, metric: Metric) -> Result<()> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("--tui: input and output must be a terminal; leave --tui out, or use --format html");
    }
    let analyses: Vec<Analysis> = recording
        .processes
        .iter()
        .map(|process| analyse(&recording.tool_version, process, &view.options, &view.suppressions))
        .collect();
    let processes: Vec<Process<'_>> =
        recording.processes.iter().zip(&analyses).map(|(recorded, analysis)| Process { recorded, analysis }).collect();
    let mut read = read_source;
    let mut tui = Tui::new(&processes, metric, &mut read);
    // A panic puts the terminal back too, before its message.
    let mut terminal = ratatui::try_init().context("the terminal cannot be used; leave --tui out")?;
    let result = run(&mut terminal, &mut tui);
    ratatui::restore();
    result.context("the terminal cannot be used any more")
}

fn run(terminal: &mut ratatui::DefaultTerminal, tui: &mut Tui<'_>) -> io::Result<()> {
    loop {
        terminal.draw(|frame| tui.draw(frame))?;
        let Event::Key(event) = event::read()? else { continue };
        if let Some(key) = key(event)
            && tui.key(key) == Next::Quit
        {
            return Ok(());
        }
    }
}

fn key(event: KeyEvent) -> Option<Key> {
    if event.kind == KeyEventKind::Release {
        return None;
    }
    let control = event.modifiers.contains(KeyModifiers::CONTROL);
    Some(match event.code {
        KeyCode::Char('c') if control => Key::Interrupt,
        KeyCode::Char(_) if control || event.modifiers.contains(KeyModifiers::ALT) => return None,
        KeyCode::Char(letter) => Key::Letter(letter),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::F(number) => Key::Function(number),
        _ => return None,
    })
}
