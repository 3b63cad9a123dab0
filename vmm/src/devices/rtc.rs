//! The real-time clock of a PC: a Motorola MC146818 at ports 0x70 (index) and 0x71 (data), telling the host's time in
//! UTC (MC146818 data sheet; register numbers as in FreeBSD's `sys/isa/rtc.h`).
//!
//! The clock runs by itself and cannot be set; alarms and periodic interrupts do not come. Registers that are not the
//! clock's are plain memory, as the battery-backed bytes of a PC are.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::{AfterWrite, BusDevice};

/// Index and data port.
pub const LEN: u64 = 2;
/// Register of the century, the one that PCs have beside the chip's own; ACPI's FADT names it.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

/// Status A: an update is in progress. While it is not, a guest may read register by register and gets one moment.
const UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// How long before the next second that is said: the update takes 1984 us, and is told 244 us earlier.
const UPDATE_TIME: Duration = Duration::from_micros(1984 + 244);
/// Status A at power-on: 32,768 Hz crystal, 1024 Hz periodic rate.
const STATUS_A_DEFAULT: u8 = 0x26;
/// Status B: binary instead of BCD, 24 hours instead of 12.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// Hours register in 12-hour mode: afternoon.
const PM: u8 = 1 << 7;
/// Status D: the battery is good.
const VALID: u8 = 1 << 7;
/// Port 0x70, bit 7: NMI mask. There is no NMI to mask.
const INDEX_BITS: u8 = 0x7f;

const SECONDS_A_DAY: u64 = 86_400;

/// The clock.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    memory: [u8; 128],
    now: fn() -> Duration,
}

impl Rtc {
    /// A clock that tells the host's time.
    pub fn new() -> Self {
        Self::with_clock(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// A clock that tells what `now` says: time since 1970, in UTC.
    fn with_clock(now: fn() -> Duration) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_A)] = STATUS_A_DEFAULT;
        memory[usize::from(STATUS_B)] = HOURS_24;
        Self { index: 0, memory, now }
    }

    fn register(&self) -> u8 {
        let moment = || Moment::at((self.now)());
        match self.index {
            SECONDS => self.number(moment().second),
            MINUTES => self.number(moment().minute),
            HOURS => self.hours(moment().hour),
            WEEKDAY => self.number(moment().weekday),
            DAY => self.number(moment().day),
            MONTH => self.number(moment().month),
            YEAR => self.number(moment().year),
            CENTURY => self.number(moment().century),
            STATUS_A => (self.stored() & !UPDATE_IN_PROGRESS) | self.update_in_progress(),
            STATUS_C => 0,
            STATUS_D => VALID,
            _ => self.stored(),
        }
    }

    fn update_in_progress(&self) -> u8 {
        let left = Duration::from_secs(1) - Duration::from_nanos((self.now)().subsec_nanos().into());
        if left <= UPDATE_TIME { UPDATE_IN_PROGRESS } else { 0 }
    }

    fn stored(&self) -> u8 {
        self.memory[usize::from(self.index & INDEX_BITS)]
    }

    /// A number below 100 in the format that status B asks for.
    fn number(&self, value: u8) -> u8 {
        if self.has(BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn hours(&self, hour: u8) -> u8 {
        if self.has(HOURS_24) {
            return self.number(hour);
        }
        let afternoon = if hour >= 12 { PM } else { 0 };
        self.number((hour + 11) % 12 + 1) | afternoon
    }

    fn has(&self, bit: u8) -> bool {
        self.memory[usize::from(STATUS_B)] & bit != 0
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read back: its value floats.
        data.fill(0xff);
        if offset == 1 {
            data.fill(self.register());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> AfterWrite {
        for &byte in data {
            match offset {
                0 => self.index = byte & INDEX_BITS,
                1 => self.memory[usize::from(self.index & INDEX_BITS)] = byte,
                _ => {}
            }
        }
        AfterWrite::Run
    }
}

/// A moment in UTC, in the clock's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    year: u8,
    century: u8,
}

impl Moment {
    fn at(since_1970: Duration) -> Self {
        let (days, second) = (since_1970.as_secs() / SECONDS_A_DAY, since_1970.as_secs() % SECONDS_A_DAY);
        let (year, month, day) = date(days);
        // Each is below 100 by its own arithmetic; the century because the clock shows four digits of the year.
        let small = |value: u64| u8::try_from(value).expect("below 100");
        Self {
            second: small(second % 60),
            minute: small(second / 60 % 60),
            hour: small(second / 3600),
            // 1 January 1970 was a Thursday.
            weekday: small((days + 4) % 7 + 1),
            day: small(day),
            month: small(month),
            year: small(year % 100),
            century: small(year / 100 % 100),
        }
    }
}

/// Year, month and day of the Gregorian calendar, for a number of days since 1970.
///
/// Counted from 1 March of year 0, so that the leap day is the last of its year: eras of 400 years have 146,097 days,
/// and the months from March on fit a line of 153 days in five months.
fn date(days: u64) -> (u64, u64, u64) {
    const FROM_YEAR_0_TO_1970: u64 = 719_468;
    let days = days + FROM_YEAR_0_TO_1970;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::contract::any_access_is_survived;

    fn clock(now: fn() -> Duration) -> Rtc {
        Rtc::with_clock(now)
    }

    fn get(rtc: &mut Rtc, register: u8) -> u8 {
        let _ = rtc.write(0, &[register]);
        let mut value = [0];
        rtc.read(1, &mut value);
        value[0]
    }

    fn set(rtc: &mut Rtc, register: u8, value: u8) {
        let _ = rtc.write(0, &[register]);
        let _ = rtc.write(1, &[value]);
    }

    /// Year, month, day, hour, minute, second.
    fn read(rtc: &mut Rtc) -> [u8; 7] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|register| get(rtc, register))
    }

    #[test]
    fn the_time_is_told_in_bcd_and_in_binary() {
        // date -u -d @1709210096: Thu Feb 29 12:34:56 UTC 2024
        let mut rtc = clock(|| Duration::from_secs(1_709_210_096));
        assert_eq!(read(&mut rtc), [0x20, 0x24, 0x02, 0x29, 0x12, 0x34, 0x56]);
        assert_eq!(get(&mut rtc, WEEKDAY), 5);
        set(&mut rtc, STATUS_B, BINARY | HOURS_24);
        assert_eq!(read(&mut rtc), [20, 24, 2, 29, 12, 34, 56]);
    }

    #[test]
    fn in_12_hour_mode_noon_and_midnight_are_12() {
        let hour = |now| {
            let mut rtc = clock(now);
            set(&mut rtc, STATUS_B, BINARY);
            get(&mut rtc, HOURS)
        };
        assert_eq!(hour(|| Duration::from_secs(0)), 12);
        assert_eq!(hour(|| Duration::from_secs(3600)), 1);
        assert_eq!(hour(|| Duration::from_secs(12 * 3600)), 12 | PM);
        assert_eq!(hour(|| Duration::from_secs(23 * 3600)), 11 | PM);
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..400 * 366 {
            assert_eq!(date(days), (year, month, day));
            let last = match month {
                2 => 28 + u64::from(leap(year)),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn status_registers_say_that_the_time_is_good_and_when_it_is_stable() {
        let mut rtc = clock(|| Duration::from_micros(1_997_000));
        set(&mut rtc, STATUS_A, 0xff);
        assert_eq!(get(&mut rtc, STATUS_A) & UPDATE_IN_PROGRESS, 0);
        // 2 ms before the next second: too little for whoever reads seven registers by that many exits.
        assert_eq!(get(&mut clock(|| Duration::from_micros(1_998_000)), STATUS_A), 0xa6);
        assert_eq!((get(&mut rtc, STATUS_C), get(&mut rtc, STATUS_D)), (0, VALID));
        assert_eq!(get(&mut rtc, STATUS_B), HOURS_24);
    }

    #[test]
    fn the_time_cannot_be_set_and_other_bytes_are_kept() {
        let mut rtc = clock(|| Duration::ZERO);
        set(&mut rtc, YEAR, 0x99);
        assert_eq!(get(&mut rtc, YEAR), 0x70);
        set(&mut rtc, 0x0f, 0x5a);
        set(&mut rtc, 0x10, 0);
        // The NMI bit is no part of the index.
        assert_eq!(get(&mut rtc, 0x8f), 0x5a);
    }

    #[test]
    fn any_access_at_any_time_is_survived() {
        any_access_is_survived(&mut Rtc::new(), LEN);
        let mut last = clock(|| Duration::from_secs(u64::MAX));
        (0..=u8::MAX).for_each(|register| {
            get(&mut last, register);
        });
    }
}
