//! `kvtier top`: a daemon's figures in the terminal, second by second.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use kvtier_daemon::stats::Snapshot;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Sparkline, Table};
use ratatui::{Frame, Terminal};

use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::{output, stats};

/// Time between two answers.
const PERIOD: Duration = Duration::from_secs(1);
/// Answers whose hit share is kept: more than a terminal is wide.
const HISTORY: usize = 512;
/// Columns and rows of a frame that no terminal shows.
const ONCE: (u16, u16) = (100, 40);
/// As on the page: told apart by most eyes, on dark and on light.
const HOST: Color = Color::Blue;
const DISK: Color = Color::Green;

/// `kvtier top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// The daemon's statistics endpoint [default: where its settings have it, 127.0.0.1:7411]
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Option<SocketAddr>,
    /// Print one frame as text and end
    #[arg(long)]
    pub once: bool,
}

/// What is shown.
#[derive(Default)]
struct View {
    snapshot: Snapshot,
    /// Thousandths of the tokens asked for that host and disk had, by answer; the youngest last.
    history: VecDeque<[u64; 2]>,
    /// Why the figures are old.
    trouble: Option<String>,
}

/// Runs the command. Exit codes: 2 for settings that cannot be used and where there is no terminal, 3 where no daemon answers.
pub fn run(args: &TopArgs) -> Result<(), Failure> {
    let endpoint = Endpoint::new(args.http)?;
    let mut view = View::default();
    view.take(endpoint.read("/stats")?);
    if args.once {
        return output::print(&once(&view)?);
    }
    if !std::io::stdout().is_terminal() {
        return Err(Failure::input("stdout is no terminal; --once prints one frame as text"));
    }
    let mut terminal = ratatui::try_init()?;
    let result = follow(&mut terminal, &endpoint, &mut view);
    ratatui::restore();
    result
}

fn follow(terminal: &mut ratatui::DefaultTerminal, endpoint: &Endpoint, view: &mut View) -> Result<(), Failure> {
    let mut next = Instant::now() + PERIOD;
    loop {
        terminal.draw(|frame| draw(frame, view))?;
        while event::poll(next.saturating_duration_since(Instant::now()))? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    _ => {}
                },
                Event::Resize(..) => {
                    terminal.draw(|frame| draw(frame, view))?;
                }
                _ => {}
            }
        }
        next = Instant::now() + PERIOD;
        match endpoint.read("/stats") {
            Ok(snapshot) => view.take(snapshot),
            // The daemon may come back; its last figures stay.
            Err(failure) => view.trouble = Some(failure.message),
        }
    }
}

/// A frame as lines of text.
fn once(view: &View) -> Result<String, Failure> {
    let failed = |error: std::convert::Infallible| -> Failure { match error {} };
    let mut terminal = Terminal::new(TestBackend::new(ONCE.0, ONCE.1)).map_err(failed)?;
    terminal.draw(|frame| draw(frame, view)).map_err(failed)?;
    Ok(lines(terminal.backend().buffer()))
}

fn lines(buffer: &Buffer) -> String {
    let row = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    let lines: Vec<String> =
        buffer.content.chunks(usize::from(buffer.area.width)).map(|cells| row(cells).trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n").trim_end())
}

impl View {
    fn take(&mut self, snapshot: Snapshot) {
        let before = &self.snapshot;
        let asked = snapshot.requested.tokens.saturating_sub(before.requested.tokens);
        // The first answer of a run has nothing to be compared with.
        if before.daemon == snapshot.daemon && asked > 0 {
            let part = |now: u64, then: u64| now.saturating_sub(then) * 1000 / asked;
            let (now, then) = (&snapshot.hits, &before.hits);
            let parts = [part(now.host.tokens, then.host.tokens), part(now.disk.tokens, then.disk.tokens)];
            self.history.push_back(parts);
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        self.snapshot = snapshot;
        self.trouble = None;
    }
}

fn draw(frame: &mut Frame<'_>, view: &View) {
    let snapshot = &view.snapshot;
    let (latency, clients) = (stats::latency(snapshot), stats::clients(snapshot));
    let heights = [
        Constraint::Length(1),
        Constraint::Length(4),
        Constraint::Length(5),
        Constraint::Length(9),
        Constraint::Length(latency.len().max(2) as u16 + 2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ];
    let [head, tiers, shares, tables, calls, connected, foot] = Layout::vertical(heights).areas(frame.area());
    let alarm = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(stats::headline(snapshot)).style(Modifier::BOLD), head);
    fill(frame, snapshot, tiers);
    history(frame, view, shares);
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(tables);
    table(frame, "tokens", &stats::tokens(snapshot), left);
    table(frame, "by reason", &stats::counts(snapshot), right);
    table(frame, "calls", &latency, calls);
    table(frame, "clients", &clients, connected);
    let foot_line = match &view.trouble {
        Some(trouble) => Line::styled(format!("{trouble}; these are the last figures"), alarm),
        None => Line::raw("q ends"),
    };
    frame.render_widget(foot_line, foot);
}

fn fill(frame: &mut Frame<'_>, snapshot: &Snapshot, area: Rect) {
    let block = Block::bordered().title("tiers");
    let inside = block.inner(area);
    frame.render_widget(block, area);
    let lines = Layout::vertical([Constraint::Length(1); 2]).areas::<2>(inside);
    let rows = stats::tiers(snapshot);
    let fills = [snapshot.tiers.host.fill, snapshot.tiers.disk.as_ref().map_or(0.0, |disk| disk.usage.fill)];
    for (index, row) in rows.iter().skip(1).enumerate() {
        let [name, fill, used, budget, blocks, evicted] = [0, 1, 2, 3, 4, 5].map(|column| row[column].as_str());
        let label = format!("{name} {fill}: {used} of {budget}, {blocks} blocks, {evicted} evicted");
        let gauge = Gauge::default().ratio(fills[index].clamp(0.0, 1.0)).label(label);
        frame.render_widget(gauge.gauge_style(if index == 0 { HOST } else { DISK }), lines[index]);
    }
}

fn history(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(area);
    for (index, (name, colour)) in [("host", HOST), ("disk", DISK)].into_iter().enumerate() {
        let width = usize::from(halves[index].width.saturating_sub(2));
        let skipped = view.history.len().saturating_sub(width);
        let parts: Vec<u64> = view.history.iter().skip(skipped).map(|parts| parts[index]).collect();
        let last = parts.last().map_or("no lookups yet".to_owned(), |part| stats::share(*part as f64 / 1e3));
        let block = Block::bordered().title(format!("tokens from {name}, second by second: {last}"));
        let line = Sparkline::default().block(block).data(&parts).max(1000).bar_set(bar::NINE_LEVELS).style(colour);
        frame.render_widget(line, halves[index]);
    }
}

/// A table whose first row is its head; what does not fit is left out at its end.
fn table(frame: &mut Frame<'_>, title: &str, rows: &[Vec<String>], area: Rect) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<Constraint> = (0..columns)
        .map(|column| if column == 0 { Constraint::Fill(1) } else { Constraint::Length(width(column) as u16) })
        .collect();
    let cells = |row: &Vec<String>| {
        let aligned = row.iter().enumerate().map(|(column, cell)| {
            let line = Line::raw(cell.clone());
            Cell::from(if column == 0 { line.left_aligned() } else { line.right_aligned() })
        });
        Row::new(aligned.collect::<Vec<_>>())
    };
    let head = rows.first().map(|row| cells(row).style(Modifier::DIM)).unwrap_or_default();
    let body = Table::new(rows.iter().skip(1).map(cells), widths).header(head).column_spacing(2);
    frame.render_widget(body.block(Block::bordered().title(title)), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvtier_daemon::stats::{Amount, Client};

    fn snapshot(asked: u64, host: u64) -> Snapshot {
        let mut snapshot = Snapshot { daemon: "ab".repeat(16), ..Snapshot::default() };
        snapshot.requested = Amount { tokens: asked, ..Amount::default() };
        snapshot.hits.host = Amount { tokens: host, ..Amount::default() };
        snapshot
    }

    #[test]
    fn a_frame_shows_what_the_answer_says() {
        let mut answer = snapshot(1000, 640);
        answer.misses.insert("evicted".into(), 17);
        answer.clients.connected.push(Client { name: "engine\u{1b}[2J".into(), pid: 4711, ..Client::default() });
        let mut view = View::default();
        view.take(answer);
        let frame = once(&view).unwrap();
        for text in ["abababab", "64.0 %", "missed: evicted", "17", "engine?[2J", "4711"] {
            assert!(frame.contains(text), "no {text} in\n{frame}");
        }
    }

    #[test]
    fn history_is_of_what_was_asked_between_two_answers() {
        let mut view = View::default();
        view.take(snapshot(1000, 640));
        assert!(view.history.is_empty());
        view.take(snapshot(1000, 640));
        assert!(view.history.is_empty());
        view.take(snapshot(1100, 665));
        assert_eq!(view.history, [[250, 0]]);
    }
}
