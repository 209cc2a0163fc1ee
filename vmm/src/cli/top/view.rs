//! How `vmm top` draws.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Cell, Paragraph, Row as TableRow, Table, Tabs};
use vmm::stats::{duration, name_of, percent, value_of};

use super::model::{Model, Page, Row, Window};

const KEYS: &str = "q quit   tab page   s sort   p pause   left/right vCPU   up/down scroll";

/// A number of events a second.
fn rate(rate: f64) -> String {
    match rate {
        r if r >= 1e6 => format!("{:.2}M", r / 1e6),
        r if r >= 1e4 => format!("{:.1}k", r / 1e3),
        r if r >= 100.0 => format!("{r:.0}"),
        r => format!("{r:.1}"),
    }
}

/// A time, or a dash.
fn time(nanos: Option<u64>) -> String {
    nanos.map_or_else(|| "-".to_owned(), duration)
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Text::from(text).right_aligned())
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// The whole screen.
pub fn draw(frame: &mut Frame<'_>, model: &Model, who: &str) {
    let [head, tabs, body, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(header(model, who)), head);
    let at = Page::ALL.iter().position(|&page| page == model.page);
    frame.render_widget(Tabs::new(Page::ALL.map(Page::title)).select(at), tabs);
    match model.page {
        Page::Exits => exits(frame, body, model),
        Page::Vcpus => vcpus(frame, body, model),
        Page::Kvm => kvm(frame, body, model),
    }
    frame.render_widget(Line::styled(KEYS, Style::new().add_modifier(Modifier::DIM)), keys);
}

/// Two lines: which VM, and all of it in numbers.
fn header(model: &Model, who: &str) -> Vec<Line<'static>> {
    let state = match (&model.ended, model.is_paused) {
        (Some(why), _) => format!("   {why}"),
        (None, true) => "   paused".to_owned(),
        (None, false) => String::new(),
    };
    let scope = match model.vcpu {
        None if model.now().vcpus.len() == 1 => "1 vCPU".to_owned(),
        None => format!("all {} vCPUs", model.now().vcpus.len()),
        Some(index) => format!("vCPU {index}"),
    };
    let total = &model.now().total;
    // Not `sum`, which is -0.0 of nothing.
    let new = model.vcpus().iter().fold(0.0, |all, row| all + row.rate);
    let numbers = format!(
        "{scope}   up {}   {} exits, {}/s   sorted by {}",
        duration(model.now().elapsed_ns),
        total.exits,
        rate(new),
        model.sort.name(),
    );
    vec![Line::styled(format!("vmm top   {who}{state}"), bold()), Line::from(numbers)]
}

/// The share of the window that a time is, of one vCPU or of all.
fn busy(model: &Model, window: Window) -> String {
    let vcpus = if model.vcpu.is_some() { 1 } else { model.now().vcpus.len().max(1) as u64 };
    format!("{:.2}", percent(window.total, model.window().saturating_mul(vcpus)))
}

fn head<const N: usize>(names: [&'static str; N]) -> TableRow<'static> {
    let cells = names.into_iter().enumerate().map(|(index, name)| match index {
        0 => Cell::from(name),
        _ => right(name.to_owned()),
    });
    TableRow::new(cells).style(bold())
}

fn show(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    header: TableRow<'static>,
    rows: impl Iterator<Item = TableRow<'static>>,
    widths: &[u16],
) {
    let first = Constraint::Min(16);
    let widths = [first].into_iter().chain(widths.iter().map(|&w| Constraint::Length(w)));
    let table =
        Table::new(rows, widths).header(header).block(Block::bordered().title(title.to_owned()));
    frame.render_widget(table, area);
}

/// Lines of a table with a header and a border.
fn lines(rows: &[Row]) -> u16 {
    u16::try_from(rows.len()).unwrap_or(u16::MAX).saturating_add(3)
}

fn exits(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (exits, devices) = (model.exits(), model.devices());
    // As many lines as there are rows, with a header and a border; who has more than half gives way.
    let wanted = (lines(&exits)).min(area.height.saturating_sub(lines(&devices)));
    let wanted = wanted.max(area.height / 2).min(lines(&exits));
    // Two tables of which neither shows a row are none.
    let wanted = if area.height < 8 { area.height } else { wanted };
    let [above, below] =
        Layout::vertical([Constraint::Length(wanted), Constraint::Min(0)]).areas(area);
    let cells = |row: &Row| {
        TableRow::new([
            Cell::from(row.name.clone()),
            right(row.count.to_string()),
            right(rate(row.rate)),
            right(format!("{:.1}", row.share)),
            right(time(row.user.p50)),
            right(time(row.user.p99)),
            right(busy(model, row.user)),
            right(time(row.kvm.p50)),
            right(time(row.kvm.p99)),
            right(busy(model, row.kvm)),
        ])
    };
    let names = ["exit", "count", "/s", "%", "p50", "p99", "busy %", "KVM p50", "KVM p99", "KVM %"];
    let widths = [11, 8, 6, 8, 8, 7, 8, 8, 7];
    let title = " exits: time in user space, and in KVM_RUN ";
    show(frame, above, title, head(names), exits.iter().skip(model.scroll).map(cells), &widths);
    let cells = |row: &Row| {
        TableRow::new([
            Cell::from(row.name.clone()),
            right(row.count.to_string()),
            right(rate(row.rate)),
            right(format!("{:.1}", row.share)),
            right(time(row.user.p50)),
            right(time(row.user.p99)),
            right(busy(model, row.user)),
        ])
    };
    let names = ["device", "accesses", "/s", "%", "p50", "p99", "busy %"];
    let title = " devices: time in user space ";
    let rows = devices.iter().skip(model.scroll).map(cells);
    show(frame, below, title, head(names), rows, &[11, 8, 6, 8, 8, 7]);
}

fn vcpus(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let rows = model.vcpus();
    let cells = rows.iter().skip(model.scroll).map(|row| {
        let of = |window: Window| format!("{:.2}", percent(window.total, model.window()));
        TableRow::new([
            Cell::from(row.name.clone()),
            right(row.count.to_string()),
            right(rate(row.rate)),
            right(format!("{:.1}", row.share)),
            right(of(row.user)),
            right(of(row.kvm)),
        ])
    });
    let names = ["vCPU", "exits", "/s", "%", "user %", "KVM_RUN %"];
    show(frame, area, " vCPUs ", head(names), cells, &[12, 9, 7, 8, 10]);
}

fn kvm(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    if let Some(why) = &model.now().kvm.lacks {
        let block = Block::bordered().title(" KVM's own statistics ");
        return frame.render_widget(Paragraph::new(why.clone()).block(block), area);
    }
    let rows = model.kvm();
    let cells = rows.iter().skip(model.scroll).map(|(metric, grows)| {
        let grows = if *grows == 0.0 { String::new() } else { rate(*grows) };
        TableRow::new([Cell::from(name_of(metric)), right(grows), right(value_of(metric))])
    });
    let title = " KVM's own statistics, what is not 0 ";
    // Histograms take what is left of the line.
    let wide = area.width.saturating_sub(54).max(14);
    show(frame, area, title, head(["name", "/s", "value"]), cells, &[9, wide]);
}
