/* Runs a model with lumina::OpticalLinear nodes in ONNX Runtime, from C.
 *
 *     ./c_host liblumina_ort.so model.onnx [runs]
 *
 * The one line that brings the operator is the call of RegisterCustomOpsLibrary_V2. The model has one input and
 * one output of float32; dimensions that the model leaves open are 2. Element i of the input is (i mod 7 - 3) / 4.
 * Each run prints its outputs; with noise on they differ from run to run, and repeat in a fresh process.
 */
#include <stdio.h>
#include <stdlib.h>

#ifdef USE_ONNXRUNTIME_HEADER
#include <onnxruntime_c_api.h>
#else
#include "onnxruntime_minimal.h"
#endif

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (status != NULL) {
        fprintf(stderr, "c_host: %s\n", ort->GetErrorMessage(status));
        ort->ReleaseStatus(status);
        exit(EXIT_FAILURE);
    }
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL) {
        fprintf(stderr, "c_host: out of memory\n");
        exit(EXIT_FAILURE);
    }
    return memory;
}

/* The input's dimensions, the open ones set to 2. */
static int64_t *input_shape(const OrtSession *session, size_t *rank) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *info;
    check(ort->SessionGetInputTypeInfo(session, 0, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &info));
    if (info == NULL) {
        fprintf(stderr, "c_host: the input of the model is no tensor\n");
        exit(EXIT_FAILURE);
    }
    check(ort->GetDimensionsCount(info, rank));
    int64_t *dims = allocate(*rank, sizeof *dims);
    check(ort->GetDimensions(info, dims, *rank));
    for (size_t i = 0; i < *rank; i++) {
        if (dims[i] < 0) dims[i] = 2;
    }
    ort->ReleaseTypeInfo(type);
    return dims;
}

static void print(OrtValue *value) {
    OrtTensorTypeAndShapeInfo *info;
    size_t count;
    float *data;
    check(ort->GetTensorTypeAndShape(value, &info));
    check(ort->GetTensorShapeElementCount(info, &count));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(ort->GetTensorMutableData(value, (void **)&data));
    for (size_t i = 0; i < count; i++) printf("%s%.9g", i > 0 ? " " : "", data[i]);
    printf("\n");
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s liblumina_ort.so model.onnx [runs]\n", argv[0]);
        return 2;
    }
    int runs = argc > 3 ? atoi(argv[3]) : 1;

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) {
        fprintf(stderr, "c_host: ONNX Runtime %s is too old\n", OrtGetApiBase()->GetVersionString());
        return EXIT_FAILURE;
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

    size_t rank, count = 1;
    int64_t *dims = input_shape(session, &rank);
    for (size_t i = 0; i < rank; i++) count *= (size_t)dims[i];
    float *data = allocate(count, sizeof *data);
    for (size_t i = 0; i < count; i++) data[i] = ((int)(i % 7) - 3) / 4.0f;

    OrtMemoryInfo *memory;
    OrtValue *input;
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, count * sizeof *data, dims, rank,
                                              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
    for (int run = 0; run < runs; run++) {
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
