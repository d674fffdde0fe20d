//! The `strftime_now` function of chat templates, in UTC: a device's clock is known, its place not.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// The first of January 1970 was a Thursday.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats `now` by the common conversions of `strftime`; others are written as they are.
pub(super) fn format_utc(format: &str, now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let month_name = MONTHS[(month - 1) as usize];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        text += &match characters.next() {
            Some('Y') => format!("{year:04}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{:02}", second_of_day / 3600),
            Some('M') => format!("{:02}", second_of_day / 60 % 60),
            Some('S') => format!("{:02}", second_of_day % 60),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
    }
    text
}

/// Year, month and day of the `days`-th day after the first of January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from the first of March of year 0, so that leap days end the years: four centuries
    // have 146,097 days, and months from March on repeat in groups of five with 153 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @SECONDS '+%d %b %Y, %A %H:%M:%S'`
        for (seconds, expected) in [
            (0, "01 Jan 1970, Thursday 00:00:00"),
            (951_782_400, "29 Feb 2000, Tuesday 00:00:00"),
            (1_721_998_799, "26 Jul 2024, Friday 12:59:59"),
            (4_107_542_400, "01 Mar 2100, Monday 00:00:00"),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(format_utc("%d %b %Y, %A %H:%M:%S", now), expected);
        }
        assert_eq!(format_utc("100%% %q %", UNIX_EPOCH), "100% %q %");
    }
}
