/* Runs a model with lumina::OpticalLinear nodes in ONNX Runtime, from C.
 *
 *     ./c_host liblumina_ort.so model.onnx [runs [input]]
 *
 * The one line that brings the operator is the call of RegisterCustomOpsLibrary_V2. The model's input and its first
 * output are float32. `input` is a file of the input's values, in the machine's own float32 format; a dimension that
 * the model leaves open follows from the number of values. Without a file, open dimensions are 2 and element i is
 * (i mod 7 - 3) / 4. Each run prints its output on a line; with noise on they differ from run to run, and repeat in a
 * fresh process. Exits with status 1 after an error, with 2 if it was called wrongly.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef USE_ONNXRUNTIME_HEADER
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_minimal.h"
#endif

static const OrtApi *ort;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "c_host: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(EXIT_FAILURE);
}

static void check(OrtStatus *status) {
    if (status != NULL) fail("%s", ort->GetErrorMessage(status));
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) fail("out of memory");
    return memory;
}

static void check_float(const OrtTensorTypeAndShapeInfo *info, const char *what) {
    ONNXTensorElementDataType type;
    if (info == NULL) fail("the %s of the model is not a tensor", what);
    check(ort->GetTensorElementType(info, &type));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) fail("the %s of the model is not float32", what);
}

/* The input's dimensions, -1 where the model leaves one open. */
static int64_t *input_shape(const OrtSession *session, size_t *rank) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *info;
    check(ort->SessionGetInputTypeInfo(session, 0, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &info));
    check_float(info, "input");
    check(ort->GetDimensionsCount(info, rank));
    int64_t *dims = allocate(*rank, sizeof *dims);
    check(ort->GetDimensions(info, dims, *rank));
    ort->ReleaseTypeInfo(type);
    return dims;
}

static float *made_up_input(int64_t *dims, size_t rank, size_t *count) {
    *count = 1;
    for (size_t i = 0; i < rank; i++) {
        if (dims[i] < 0) dims[i] = 2;
        *count *= (size_t)dims[i];
    }
    float *data = allocate(*count, sizeof *data);
    for (size_t i = 0; i < *count; i++) data[i] = ((int)(i % 7) - 3) / 4.0f;
    return data;
}

static float *input_from_file(const char *path, int64_t *dims, size_t rank, size_t *count) {
    enum { BLOCK = 1 << 16 };
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail("%s: %s", path, strerror(errno));
    char *bytes = NULL;
    size_t size = 0, got;
    do {
        bytes = realloc(bytes, size + BLOCK);
        if (bytes == NULL) fail("out of memory");
        got = fread(bytes + size, 1, BLOCK, file);
        size += got;
    } while (got == BLOCK);
    if (ferror(file)) fail("%s: %s", path, strerror(errno));
    fclose(file);
    if (size % sizeof(float) != 0) fail("%s has %zu bytes, and a float32 value has 4", path, size);
    *count = size / sizeof(float);

    size_t known = 1;
    int64_t *open = NULL;
    for (size_t i = 0; i < rank; i++) {
        if (dims[i] >= 0) {
            known *= (size_t)dims[i];
        } else if (open == NULL) {
            open = &dims[i];
        } else {
            fail("%s: the model leaves several dimensions of its input open", path);
        }
    }
    if (open == NULL && *count != known) fail("%s has %zu values, and the model takes %zu", path, *count, known);
    if (open != NULL) {
        if (*count == 0 || known == 0 || *count % known != 0) {
            fail("%s has %zu values, and the model takes a multiple of %zu", path, *count, known);
        }
        *open = (int64_t)(*count / known);
    }
    return (float *)bytes;
}

static void print(OrtValue *value) {
    OrtTensorTypeAndShapeInfo *info;
    size_t count;
    float *data;
    check(ort->GetTensorTypeAndShape(value, &info));
    check_float(info, "output");
    check(ort->GetTensorShapeElementCount(info, &count));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(ort->GetTensorMutableData(value, (void **)&data));
    for (size_t i = 0; i < count; i++) printf("%s%.9g", i > 0 ? " " : "", data[i]);
    printf("\n");
}

int main(int argc, char **argv) {
    char *end = "";
    long runs = argc > 3 ? strtol(argv[3], &end, 10) : 1;
    if (argc < 3 || argc > 5 || *end != '\0' || runs < 1) {
        fprintf(stderr, "usage: %s liblumina_ort.so model.onnx [runs, 1 or more [input]]\n", argv[0]);
        return 2;
    }

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) {
        fail("ONNX Runtime %s is too old: 1.%d or newer", OrtGetApiBase()->GetVersionString(), ORT_API_VERSION);
    }
    fprintf(stderr, "ONNX Runtime %s\n", OrtGetApiBase()->GetVersionString());

    OrtEnv *env;
    OrtSessionOptions *options;
    OrtSession *session;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "c_host", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->RegisterCustomOpsLibrary_V2(options, argv[1]));
    check(ort->CreateSession(env, argv[2], options, &session));

    OrtAllocator *allocator;
    char *input_name, *output_name;
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputName(session, 0, allocator, &input_name));
    check(ort->SessionGetOutputName(session, 0, allocator, &output_name));

    size_t rank, count;
    int64_t *dims = input_shape(session, &rank);
    float *data = argc > 4 ? input_from_file(argv[4], dims, rank, &count) : made_up_input(dims, rank, &count);

    OrtMemoryInfo *memory;
    OrtValue *input;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, count * sizeof *data, dims, rank,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    for (long run = 0; run < runs; run++) {
        OrtValue *output = NULL;
        check(ort->Run(session, NULL, (const char *const *)&input_name, (const OrtValue *const *)&input, 1,
                       (const char *const *)&output_name, 1, &output));
        print(output);
        ort->ReleaseValue(output);
    }

    ort->ReleaseValue(input);
    ort->ReleaseMemoryInfo(memory);
    check(ort->AllocatorFree(allocator, input_name));
    check(ort->AllocatorFree(allocator, output_name));
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    free(data);
    free(dims);
    return EXIT_SUCCESS;
}
