#include "yaml_reader.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct yaml_reader {
    yaml_parser_t parser;
    yaml_event_t event;
    int has_event;
    const uint8_t *text;
    size_t count, line;
};

struct yaml_reader *yaml_reader_open(const uint8_t *bytes, size_t count) {
    struct yaml_reader *reader = calloc(1, sizeof *reader);
    if (!reader) return NULL;
    if (!yaml_parser_initialize(&reader->parser)) {
        free(reader);
        return NULL;
    }
    yaml_parser_set_encoding(&reader->parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader->parser, bytes, count);
    return reader;
}

void yaml_reader_close(struct yaml_reader *reader) {
    if (reader->has_event) yaml_event_delete(&reader->event);
    yaml_parser_delete(&reader->parser);
    free(reader);
}

static enum yaml_item failed(struct yaml_reader *reader) {
    const char *problem = reader->parser.problem ? reader->parser.problem : "not enough memory";
    reader->text = (const uint8_t *)problem;
    reader->count = strlen(problem);
    reader->line = reader->parser.problem_mark.line + 1;
    return YAML_ITEM_ERROR;
}

static enum yaml_item scalar(struct yaml_reader *reader) {
    const yaml_event_t *event = &reader->event;
    reader->text = event->data.scalar.value;
    reader->count = event->data.scalar.length;
    if (event->data.scalar.anchor) return YAML_ITEM_ALIAS;
    if (event->data.scalar.plain_implicit) return YAML_ITEM_PLAIN;
    if (event->data.scalar.quoted_implicit) return YAML_ITEM_TEXT;
    return event->data.scalar.tag && !strcmp((const char *)event->data.scalar.tag, YAML_STR_TAG) ? YAML_ITEM_TEXT
                                                                                                  : YAML_ITEM_TAGGED;
}

enum yaml_item yaml_reader_next(struct yaml_reader *reader) {
    yaml_event_t *event = &reader->event;
    reader->text = NULL;
    reader->count = 0;
    for (;;) {
        if (reader->has_event) yaml_event_delete(event);
        reader->has_event = 0;
        if (!yaml_parser_parse(&reader->parser, event)) return failed(reader);
        reader->has_event = 1;
        reader->line = event->start_mark.line + 1;
        switch (event->type) {
        case YAML_DOCUMENT_START_EVENT: return YAML_ITEM_DOCUMENT;
        case YAML_NO_EVENT:
        case YAML_STREAM_END_EVENT: return YAML_ITEM_END;
        case YAML_SCALAR_EVENT: return scalar(reader);
        case YAML_SEQUENCE_START_EVENT:
            if (event->data.sequence_start.anchor) return YAML_ITEM_ALIAS;
            return event->data.sequence_start.implicit ? YAML_ITEM_SEQUENCE : YAML_ITEM_TAGGED;
        case YAML_SEQUENCE_END_EVENT: return YAML_ITEM_SEQUENCE_END;
        case YAML_MAPPING_START_EVENT:
            if (event->data.mapping_start.anchor) return YAML_ITEM_ALIAS;
            return event->data.mapping_start.implicit ? YAML_ITEM_MAPPING : YAML_ITEM_TAGGED;
        case YAML_MAPPING_END_EVENT: return YAML_ITEM_MAPPING_END;
        case YAML_ALIAS_EVENT: return YAML_ITEM_ALIAS;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT: break;
        }
    }
}

size_t yaml_reader_line(const struct yaml_reader *reader) { return reader->line; }

const uint8_t *yaml_reader_text(const struct yaml_reader *reader, size_t *count) {
    *count = reader->count;
    return reader->text;
}
