//! Columns for people.
//!
//! Refuses to know what is in them. Invariant: no control character reaches the terminal.

use crate::service::ServiceError;
use std::fmt::Write as _;

/// Text in columns, the first row a heading; columns named in `right` are aligned right.
pub struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    pub fn new(heading: &[&str], right: &'static [usize]) -> Table {
        Table {
            rows: vec![heading.iter().map(|text| text.to_string()).collect()],
            right,
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| plain(cell)).collect());
    }

    pub fn print(&self, out: &mut String) {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..).map_while(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ = match self.right.contains(&column) {
                    true => write!(line, "{cell:>width$}  "),
                    false => write!(line, "{cell:<width$}  "),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }
}

/// Text from elsewhere, safe to print.
pub fn plain(text: &str) -> String {
    crate::service::plain(text)
}

/// An error as one line.
pub fn error_line(program: &str, error: &ServiceError) -> String {
    plain(&format!("{program}: {error}"))
}

/// The first twelve digits, enough to tell digests apart.
pub fn short(digest: impl ToString) -> String {
    digest.to_string().chars().take(12).collect()
}

/// Seconds since 1970 as `2026-05-31 12:00:00 UTC`.
pub fn time(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    // Days to a civil date: eras of 400 years that begin on a first of March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil_dates() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_767_225_599, "2025-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(seconds), want);
        }
        assert!(time(u64::MAX).ends_with("UTC"));
    }

    #[test]
    fn columns_line_up_and_control_characters_do_not_get_out() {
        let mut table = Table::new(&["NAME", "SIZE"], &[1]);
        table.row(vec!["a\u{1b}[2J".into(), "1".into()]);
        let mut out = String::new();
        table.print(&mut out);
        assert_eq!(out, "NAME        SIZE\na\\u{1b}[2J     1\n");
    }
}
