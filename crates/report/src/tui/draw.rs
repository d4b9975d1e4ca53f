//! How the view looks.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::{Mode, Tui};
use crate::escape::terminal;
use crate::finding::file_name;
use crate::profile::Metric;
use crate::wording::grouped;

const HELP: &[&str] = &[
    "Up, Down, k, j             a row up or down",
    "Page Up, Page Down, b, f   a page up or down; also space",
    "Home, End, g, G            to the first or last row",
    "Right, +                   show what a function calls",
    "Left, -                    hide it, or go to the caller",
    "Enter                      show or hide it",
    "/, F3                      search for a function; n and N find the next and the one before",
    "m, F6                      leaked, live, peak, temporary, total",
    "q, F10                     leave",
];

impl Tui<'_> {
    /// Draws everything.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let source_rows = (area.height / 3).min(15);
        let [head, columns, tree, source, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(1),
            Constraint::Length(source_rows),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(Paragraph::new(self.heading()), head);
        let unit = if self.metric.counts_blocks() { "BLOCKS" } else { "BYTES" };
        let words = format!("{unit:>15}  SHARE  FUNCTION");
        frame.render_widget(Paragraph::new(words).style(Style::new().black().on_green()), columns);
        self.draw_tree(frame, tree);
        self.draw_source(frame, source);
        frame.render_widget(Paragraph::new(self.footer()), foot);
        if matches!(self.mode, Mode::Help) {
            let lines: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(*line)).collect();
            let both = Rect { height: tree.height + source.height, ..tree };
            frame.render_widget(ratatui::widgets::Clear, both);
            frame.render_widget(
                Paragraph::new(lines).block(Block::bordered().title(" Keys (any key goes back) ")),
                both,
            );
        }
    }

    fn heading(&self) -> Line<'static> {
        let total = grouped(self.tree.total(self.metric));
        let unit = if self.metric.counts_blocks() { "blocks" } else { "bytes" };
        let mut spans = vec![Span::from("leakscope ").bold(), Span::from(format!("{}  ", self.title))];
        for metric in Metric::ALL {
            let word = Span::from(format!(" {} ", metric.word()));
            spans.push(if metric == self.metric { word.reversed() } else { word });
        }
        spans.push(Span::from(format!("  {total} {unit}")));
        Line::from(spans)
    }

    fn draw_tree(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.page = usize::from(area.height).max(1);
        // The selection stays on the screen.
        self.top = self.top.min(self.selected).max((self.selected + 1).saturating_sub(self.page));
        let total = self.tree.total(self.metric).max(1);
        let words = self.searched.to_lowercase();
        let rows = self.rows.iter().enumerate().skip(self.top).take(self.page);
        let lines: Vec<Line<'_>> = rows
            .map(|(number, &at)| {
                let node = &self.tree.nodes[at];
                let amount = self.tree.amount(at, self.metric);
                let mark = match (self.tree.has_children(at, self.metric), node.open) {
                    (false, _) => ' ',
                    (true, true) => '-',
                    (true, false) => '+',
                };
                // Very deep stacks must not push names off the screen.
                let indent = " ".repeat(node.depth.min(usize::from(area.width) / 3));
                let is_found = !words.is_empty() && node.name.to_lowercase().contains(&words);
                let name = if is_found { Span::from(&node.name).yellow().bold() } else { Span::from(&node.name) };
                let place = match (node.file.is_empty(), self.tree.line(at, self.metric)) {
                    (true, _) => String::new(),
                    (false, 0) => format!("  {}", file_name(&node.file)),
                    (false, line) => format!("  {}:{line}", file_name(&node.file)),
                };
                let share = 100.0 * amount as f64 / total as f64;
                let line = Line::from(vec![
                    Span::from(format!("{:>15} {share:>5.1}%  {indent}{mark} ", grouped(amount))),
                    name,
                    Span::from(terminal(&place)).add_modifier(Modifier::DIM),
                ]);
                if number == self.selected { line.style(Style::new().reversed()) } else { line }
            })
            .collect();
        if lines.is_empty() {
            let unit = if self.metric.counts_blocks() { "blocks" } else { "bytes" };
            frame
                .render_widget(Paragraph::new(format!("no {} {unit}; m shows another view", self.metric.word())), area);
            return;
        }
        frame.render_widget(Paragraph::new(lines), area);
    }

    fn draw_source(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let Some(current) = self.current() else { return };
        let (node, line) = (&self.tree.nodes[current], self.tree.line(current, self.metric) as usize);
        let (file, module, name) = (node.file.clone(), node.module.clone(), node.name.clone());
        let title = match (file.is_empty(), module.is_empty()) {
            (false, _) => format!(" {file}:{line} "),
            (true, false) => format!(" {name} in {module} "),
            (true, true) => format!(" {name} "),
        };
        let block = Block::bordered().title(terminal(&title));
        let inside = block.inner(area);
        let rows = usize::from(inside.height);
        let lines: Vec<Line<'_>> = match self.source(&file).filter(|lines| line > 0 && line <= lines.len()) {
            Some(lines) => {
                let first = line.saturating_sub(1 + rows / 2).min(lines.len().saturating_sub(rows));
                let shown = lines.iter().enumerate().skip(first).take(rows);
                shown
                    .map(|(number, text)| {
                        let words = Line::from(format!("{:>6}  {text}", number + 1));
                        if number + 1 == line { words.bold().yellow() } else { words }
                    })
                    .collect()
            }
            None if file.is_empty() => vec![Line::from("no source file is known").dim()],
            None => vec![Line::from("the source is not at hand").dim()],
        };
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn footer(&self) -> Line<'_> {
        if let Mode::Search(words) = &self.mode {
            return Line::from(format!("/{}_", terminal(words)));
        }
        if !self.message.is_empty() {
            return Line::from(terminal(&self.message)).yellow();
        }
        let mut spans = Vec::new();
        for (key, words) in [("F1", "Help"), ("F3", "Search"), ("F6", "Metric"), ("Enter", "Open"), ("F10", "Quit")] {
            spans.push(Span::from(format!(" {key} ")));
            spans.push(Span::from(format!("{words:<7}")).black().on_cyan());
        }
        Line::from(spans)
    }
}
