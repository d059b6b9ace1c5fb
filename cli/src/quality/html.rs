//! One page without anything outside it: plots as SVG, the tables beside them. Colours stand in the SVG as for light paper; the style sheet
//! replaces them where the reader prefers dark.

use plotters::element::ErrorBar;
use plotters::prelude::*;

use kvtier_engine::quality::retrieval::Retrieval;
use kvtier_engine::quality::tasks::Task;

use crate::args::QualityArgs;
use crate::quality::{Report, Table, tables};

/// Width and height of a plot in CSS pixels.
const SIZE: (u32, u32) = (720, 360);
const INK: RGBColor = RGBColor(0x20, 0x21, 0x24);
const GRID: RGBColor = RGBColor(0xD9, 0xDC, 0xE0);
/// Okabe and Ito's colours, told apart by most eyes; one per form.
const SERIES: [RGBColor; 5] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0x7A, 0x6A, 0x00),
];
/// Each colour on dark paper.
const DARK: [(RGBColor, &str); 7] = [
    (INK, "#e8eaed"),
    (GRID, "#3c4043"),
    (SERIES[0], "#56b4e9"),
    (SERIES[1], "#f0a35e"),
    (SERIES[2], "#4fd1a5"),
    (SERIES[3], "#e6a7cb"),
    (SERIES[4], "#f0e442"),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
background:#fff;color:#202124}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.2rem .7rem;text-align:right;\
border-bottom:1px solid #d9dce0;white-space:nowrap}th:first-child,td:first-child{text-align:left}\
svg{width:100%;height:auto}.key span{display:inline-block;margin-right:1.2rem}\
.key i{display:inline-block;width:1.2rem;height:.25rem;margin-right:.4rem;vertical-align:middle}\
code{font-size:.9em}";

/// x, y, and the standard error of y.
type Point = (f64, f64, f64);

/// One form's line in a plot.
struct Line {
    colour: RGBColor,
    points: Vec<Point>,
}

/// The whole page.
pub fn page(reports: &[Report], args: &QualityArgs) -> String {
    let model = args.engine.model.as_deref().unwrap_or(kvtier_engine::models::DEFAULT_MODEL);
    let mut body = format!(
        "<h1>kvtier quality</h1><p>Model {}, {} x {} tokens of {}. KL(exact || form) is in nats over the second half of each piece, with \
         its standard error over runs of 64 positions; the floor is the same KV in f32.</p>",
        escape(model),
        args.chunks,
        args.tokens,
        escape(&args.file.display().to_string())
    );
    body.push_str(&key(reports));
    for (title, plot) in plots(reports) {
        body.push_str(&format!("<h2>{}</h2>{plot}", escape(&title)));
    }
    body.extend(tables(reports).iter().map(table));
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>kvtier quality</title><style>{STYLE}{}</style></head>\
         <body>{body}</body></html>\n",
        dark()
    )
}

/// Rules for dark paper.
fn dark() -> String {
    let rule = |(light, dark): &(RGBColor, &str)| {
        let light = hex(*light);
        format!(
            "svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}i[data-colour=\"{light}\"]{{background:{dark}!important}}"
        )
    };
    let rules: String = DARK.iter().map(rule).collect();
    format!(
        "@media (prefers-color-scheme:dark){{body{{background:#17181a;color:#e8eaed}}th,td{{border-color:#3c4043}}{rules}}}"
    )
}

/// As plotters writes a colour.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

fn colour(index: usize) -> RGBColor {
    SERIES[index % SERIES.len()]
}

fn key(reports: &[Report]) -> String {
    let entry = |(index, report): (usize, &Report)| {
        let colour = hex(colour(index));
        let name = report.divergence.form.name();
        format!("<span><i data-colour=\"{colour}\" style=\"background:{colour}\"></i>{name}</span>")
    };
    format!("<p class=\"key\">{}</p>", reports.iter().enumerate().map(entry).collect::<String>())
}

fn table(table: &Table) -> String {
    let (head, rows) = table.rows.split_first().expect("a table has heads");
    let row = |cells: &Vec<String>, tag: &str| {
        let cells: String = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let rows: String = rows.iter().map(|cells| row(cells, "td")).collect();
    format!("<h2>{}</h2><table>{}{rows}</table>", escape(table.title), row(head, "th"))
}

fn plots(reports: &[Report]) -> Vec<(String, String)> {
    let lines = |points: &dyn Fn(&Report) -> Vec<Point>| -> Vec<Line> {
        let line = |(index, report)| Line { colour: colour(index), points: points(report) };
        reports.iter().enumerate().map(line).collect()
    };
    let position = lines(&|report| {
        let parts = report.divergence.parts.iter();
        parts.map(|part| ((part.from + part.to) as f64 / 2.0, part.summary.kl_mean, 0.0)).collect()
    });
    let bits = lines(&|report| vec![(report.divergence.bits_per_value, report.divergence.summary.kl_mean, 0.0)]);
    let floor = reports.first().map(|report| report.divergence.floor_kl);
    let mut plots = vec![
        ("KL by position".to_owned(), logarithmic(&position, floor, "position", "mean KL, nats")),
        ("KL by size".to_owned(), logarithmic(&bits, floor, "stored bits per value", "mean KL, nats")),
    ];
    let mut lengths: Vec<usize> =
        reports.iter().flat_map(|report| &report.retrieval).map(|row| row.grid.tokens).collect();
    lengths.sort_unstable();
    lengths.dedup();
    for (length, task) in lengths.iter().flat_map(|length| Task::ALL.map(|task| (*length, task))) {
        let of = |row: &&Retrieval| row.grid.tokens == length && row.task == task && row.is_usable();
        let depth = lines(&|report| {
            let rows = report.retrieval.iter().filter(of).flat_map(|row| &row.depths);
            rows.map(|depth| (depth.depth, depth.form - depth.exact, depth.error.unwrap_or(0.0))).collect()
        });
        if depth.iter().any(|line| !line.points.is_empty()) {
            let title = format!("Retrieval by depth: {}, {length} tokens", task.name());
            plots.push((title, linear(&depth, "depth: 0 is the start", "answer, form - exact, nats")));
        }
    }
    plots
}

/// Positive values on a logarithmic axis; others have no place on it. `floor`: a level that is drawn across.
fn logarithmic(lines: &[Line], floor: Option<f64>, x: &str, y: &str) -> String {
    let power = |line: &Line| {
        let points = line.points.iter().filter(|point| point.1 > 0.0);
        Line { colour: line.colour, points: points.map(|(x, y, _)| (*x, y.log10(), 0.0)).collect() }
    };
    let lines: Vec<Line> = lines.iter().map(power).collect();
    if lines.iter().all(|line| line.points.is_empty()) {
        return "<p>Every row is exact: there is nothing to draw.</p>".to_owned();
    }
    let level = floor.filter(|floor| *floor > 0.0).map(|floor| (floor.log10(), "floor"));
    plot(&lines, level, [x, y], &|value| format!("{:.1e}", 10f64.powf(*value)))
}

/// Values with their standard errors on a linear axis that shows 0.
fn linear(lines: &[Line], x: &str, y: &str) -> String {
    plot(lines, Some((0.0, "")), [x, y], &|value| format!("{value:.2}"))
}

/// Lines with error bars. `level`: a height with its name, drawn across.
fn plot(lines: &[Line], level: Option<(f64, &str)>, names: [&str; 2], format: &dyn Fn(&f64) -> String) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let ends = points().flat_map(|(_, value, error)| [value - error, value + error]);
    let vertical = widened(bounds(ends.chain(level.map(|(height, _)| height))));
    let (from, to) = widened(bounds(points().map(|point| point.0)));
    draw(|root| {
        let mut chart = ChartBuilder::on(root);
        chart.margin(12).x_label_area_size(44).y_label_area_size(84);
        let mut chart = chart.build_cartesian_2d(from..to, vertical.0..vertical.1).ok()?;
        chart
            .configure_mesh()
            .x_desc(names[0])
            .y_desc(names[1])
            .axis_desc_style(label())
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .label_style(label())
            .x_label_formatter(&|value| format!("{value:.1}").trim_end_matches(".0").to_owned())
            .y_label_formatter(format)
            .draw()
            .ok()?;
        if let Some((height, name)) = level {
            chart.draw_series(LineSeries::new([(from, height), (to, height)], INK.stroke_width(1))).ok()?;
            chart.draw_series([Text::new(name.to_owned(), (from, height), label())]).ok()?;
        }
        for Line { colour, points } in lines {
            let values = || points.iter().map(|(x, y, _)| (*x, *y));
            chart.draw_series(LineSeries::new(values(), colour.stroke_width(2))).ok()?;
            chart.draw_series(values().map(|point| Circle::new(point, 3, colour.filled()))).ok()?;
            let errors = points.iter().filter(|point| point.2 > 0.0);
            let bars = errors
                .map(|(x, y, error)| ErrorBar::new_vertical(*x, y - error, *y, y + error, colour.stroke_width(1), 6));
            chart.draw_series(bars).ok()?;
        }
        Some(())
    })
}

type Root<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn label() -> TextStyle<'static> {
    ("sans-serif", 14).into_font().color(&INK)
}

/// An SVG. Writing into a string does not fail, so a plot that cannot be drawn is told apart by its text alone.
fn draw(plot: impl FnOnce(&Root<'_>) -> Option<()>) -> String {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let drawn = plot(&root).and_then(|()| root.present().ok());
    drop(root);
    if drawn.is_some() { scaled(&svg) } else { "<p>This plot could not be drawn.</p>".to_owned() }
}

/// The page's width decides: the size that plotters writes gives way to a view box.
fn scaled(svg: &str) -> String {
    let (width, height) = SIZE;
    svg.replacen(&format!("width=\"{width}\" height=\"{height}\""), "role=\"img\"", 1)
}

/// Smallest and largest of the values; `None` without any.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// A little more on both sides, and something where there is nothing between them.
fn widened(bounds: Option<(f64, f64)>) -> (f64, f64) {
    let (low, high) = bounds.unwrap_or((0.0, 0.0));
    let margin = if high > low { (high - low) * 0.05 } else { 1.0 };
    (low - margin, high + margin)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
