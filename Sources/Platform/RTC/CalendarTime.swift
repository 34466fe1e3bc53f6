/// A date and time of the proleptic Gregorian calendar, in UTC.
struct CalendarTime: Equatable, Sendable {
    var year: Int
    var month: Int
    var day: Int
    var hour: Int
    var minute: Int
    var second: Int

    /// From seconds since 1970-01-01. The day arithmetic counts 400-year eras of 146097 days from 0000-03-01, so that
    /// the leap day is the last of its year.
    init(secondsSince1970 seconds: Int64) {
        let daySeconds = Int((seconds % 86400 + 86400) % 86400)
        let days = Int((seconds - Int64(daySeconds)) / 86400) + 719_468
        let era = (days >= 0 ? days : days - 146_096) / 146_097
        let dayOfEra = days - era * 146_097
        let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
        let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
        let marchMonth = (5 * dayOfYear + 2) / 153
        day = dayOfYear - (153 * marchMonth + 2) / 5 + 1
        month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
        year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
        hour = daySeconds / 3600
        minute = daySeconds / 60 % 60
        second = daySeconds % 60
    }

    /// Fields out of range carry over, as with `timegm`.
    init(year: Int, month: Int, day: Int, hour: Int, minute: Int, second: Int) {
        self.year = year
        self.month = month
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second
    }

    private var daysSince1970: Int {
        let shiftedYear = month <= 2 ? year - 1 : year
        let era = (shiftedYear >= 0 ? shiftedYear : shiftedYear - 399) / 400
        let yearOfEra = shiftedYear - era * 400
        let dayOfYear = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1
        return era * 146_097 + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear - 719_468
    }

    var secondsSince1970: Int64 {
        Int64(daysSince1970) * 86400 + Int64(hour * 3600 + minute * 60 + second)
    }

    /// 1 is Sunday, as register 6 counts.
    var dayOfWeek: Int { ((daysSince1970 + 4) % 7 + 7) % 7 + 1 }
}
