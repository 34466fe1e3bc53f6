internal import CommandLineTool
internal import Glibc

@main
enum Program {
    static func main() {
        exit(CommandLineTool.run(Array(CommandLine.arguments.dropFirst())))
    }
}
